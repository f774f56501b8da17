"""The one place where an exception becomes a response, so that every error has the same shape and headers."""

import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distllm.server.disconnect import ClientGone
from distllm.server.errors import error_kind, error_response

logger = logging.getLogger("distllm.server")


class ErrorBoundary:
    """Pure ASGI. A response that has begun cannot change any more: then the exception goes on to the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except (ClientGone, ClientDisconnect):
            return
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            if error_kind(error).code == "internal_error":
                request_id = scope.get("state", {}).get("request_id")
                logger.error("%s %s (%s) failed", scope["method"], scope["path"], request_id, exc_info=error)
            await error_response(error)(scope, receive, send)
