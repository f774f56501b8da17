"""How both clients use httpx: the settings of a connection, and its failures in this package's words."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from distllm.clients.errors import (
    ConnectionLostError,
    InvalidCallError,
    RequestTimeoutError,
    ServerUnreachableError,
    UnexpectedReplyError,
)

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is and how long to wait for it.

    `timeout_s` bounds the silence between two bytes, not the whole answer. A trailing `/v1` of `base_url`, as the
    official SDK wants it, is dropped.
    """

    base_url: str
    api_key: str | None = None
    timeout_s: float = 600.0
    connect_timeout_s: float = 5.0

    @property
    def url(self) -> httpx.URL:
        """Raises InvalidCallError where `base_url` is not an http address."""
        try:
            url = httpx.URL(self.base_url.rstrip("/").removesuffix("/v1"))
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
            raise InvalidCallError(f"{self.base_url!r} is not a server's address; write it as http://host:port")
        return url

    @property
    def headers(self) -> dict[str, str]:
        """Raises InvalidCallError for a key that a header cannot carry."""
        headers = {"content-type": "application/json"}
        if self.api_key is not None:
            if not (self.api_key.isascii() and self.api_key.isprintable()):
                raise InvalidCallError("the API key must be of printable ASCII characters")
            headers["authorization"] = f"Bearer {self.api_key}"
        return headers

    @property
    def timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout_s, connect=self.connect_timeout_s)

    @property
    def uses_proxies(self) -> bool:
        """Proxies of the environment are for other hosts than this one."""
        return not _is_loopback(self.url.host)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns httpx's exceptions into this package's."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerUnreachableError(str(self.url), str(error) or "no connection in time") from error
        except httpx.TimeoutException as error:
            raise RequestTimeoutError(f"{self.url} was silent for {self.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise ConnectionLostError(f"the connection to {self.url} broke: {error}") from error
        except httpx.StreamError as error:
            raise ConnectionLostError("the stream has been closed") from error
        except httpx.RequestError as error:
            raise UnexpectedReplyError(f"the reply of {self.url} cannot be read: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
