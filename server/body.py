"""Reads a request body into its model, within a limit that is enforced before the body has been read whole."""

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from distllm.server.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType, shown
from distllm.server.protocol.json_body import JsonObject, parse_json_object

_INLINE_BYTES = 32 * 1024
"""Bodies up to this length are parsed on the event loop; a thread costs more."""
_JSON_TYPE = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)
_UTF8_CHARSET = re.compile(r"""charset\s*=\s*["']?utf-?8["']?""", re.IGNORECASE)

Model = TypeVar("Model")


async def read_body(request: Request, max_bytes: int, to_model: Callable[[JsonObject], Model]) -> Model:
    """Raises BodyTooLarge, UnsupportedMediaType, InvalidRequest or what `to_model` raises."""
    _check_encoding(request.headers.get("content-encoding", "identity"))
    _check_content_type(request.headers.get("content-type", ""))
    _check_content_length(request.headers.get("content-length"), max_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
    if len(body) <= _INLINE_BYTES:
        return to_model(parse_json_object(bytes(body)))
    return await asyncio.to_thread(lambda: to_model(parse_json_object(bytes(body))))


def _check_encoding(encoding: str) -> None:
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding must be identity, not {shown(encoding)!r}")


def _check_content_type(content_type: str) -> None:
    """A missing type passes as JSON; a wrong one does not, least of all a form's, which a web page may send."""
    if not content_type:
        return
    media_type, *parameters = (part.strip() for part in content_type.split(";"))
    charsets = [parameter for parameter in parameters if parameter.lower().startswith("charset")]
    if not _JSON_TYPE.fullmatch(media_type) or not all(map(_UTF8_CHARSET.fullmatch, charsets)):
        raise UnsupportedMediaType(f"Content-Type must be application/json in UTF-8, not {shown(content_type)!r}")


def _check_content_length(length: str | None, max_bytes: int) -> None:
    if length is None:
        return
    if not (length.isascii() and length.isdigit()):
        raise InvalidRequest("Content-Length must be a number of bytes")
    if len(length) > 18 or int(length) > max_bytes:
        raise BodyTooLarge(max_bytes)
