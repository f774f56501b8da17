"""Bytes on a connection of one's own, for what no HTTP client would send."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

TIMEOUT_S = 20.0


@contextmanager
def connect(http: httpx.Client) -> Iterator[socket.socket]:
    """A connection to the server that `http` speaks to, encrypted where its URL is."""
    url = http.base_url
    is_encrypted = url.scheme == "https"
    address = (url.host, url.port or (443 if is_encrypted else 80))
    with socket.create_connection(address, timeout=TIMEOUT_S) as plain:
        if not is_encrypted:
            yield plain
            return
        with ssl.create_default_context().wrap_socket(plain, server_hostname=url.host) as encrypted:
            yield encrypted


def request_head(http: httpx.Client, *fields: str, path: str = "/v1/completions") -> bytes:
    """The head of a POST of JSON."""
    prefix = http.base_url.path.rstrip("/")
    lines = [
        f"POST {prefix}{path} HTTP/1.1",
        f"Host: {http.base_url.host}",
        "Content-Type: application/json",
        f"Authorization: {http.headers['authorization']}",
        *fields,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def request(http: httpx.Client, body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    """A whole POST."""
    content = json.dumps(body).encode()
    return request_head(http, f"Content-Length: {len(content)}", path=path) + content


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the server's end of the connection."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
