"""Answers to HTTP/1.0, which knows no chunks: a body of unknown length ends where the connection does."""

from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def close_delimited(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """`app`, answering through a `cycle` that closes its connection at the end, without chunks."""

    async def plain_app(scope: Any, receive: Any, send: Any) -> None:
        has_length = False

        async def send_plain(message: Any) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                headers = [field for field in message["headers"] if field[0].lower() != b"connection"]
                has_length = any(name.lower() == b"content-length" for name, _ in headers)
                cycle.chunked_encoding = None if has_length else False
                message = message | {"headers": headers}
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return cast(ASGI3Application, plain_app)
