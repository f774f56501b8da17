"""A route whose handler takes the request and returns the response: no dependencies, no conversion."""

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """Handlers parse bodies themselves, within limits; FastAPI's own machinery would cost a tenth of a
    millisecond a request and find nothing to do. HEAD is answered wherever GET is."""

    def get_route_handler(self) -> Handler:
        return cast(Handler, self.endpoint)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(_asking(scope))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _asking(scope)["method"] in (self.methods or ()):
            await self.app(scope, receive, send)
        else:
            await super().handle(scope, receive, send)


def _asking(scope: Scope) -> Scope:
    """HEAD asks what GET asks; the server leaves out the body."""
    return {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope
