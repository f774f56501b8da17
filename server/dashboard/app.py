"""The page of a cluster as a web application: three static files and a stream of what they show.

It is read only and asks for no key: who may reach it is decided by where it listens.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import msgspec
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from typing_extensions import override

from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.scheduler.messages import Loading
from distllm.server.ports import EngineView

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": "cluster.html", "/cluster.css": "cluster.css", "/cluster.js": "cluster.js"}
_SEND_TIMEOUT_S = 30.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class DashboardReport(msgspec.Struct, frozen=True):
    """One event of the stream: what the page shows at one moment. `cluster` is None while there is no engine."""

    state: str
    loading: Loading | None
    stats: dict[str, float]
    cluster: ClusterSnapshot | None


def create_dashboard(engine: EngineView, hosts: Sequence[str]) -> Starlette:
    """`hosts` are the names under which browsers may ask for it, ["*"] for any.

    A page of another site whose name is made to lead here is so kept from reading it.
    """

    async def events(_: Request) -> Response:
        return ReportStream(reports(engine))

    files = [Route(path, _file_endpoint(_PAGE / name)) for path, name in _FILES.items()]
    return Starlette(
        routes=[*files, Route("/events", events)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
    )


async def reports(engine: EngineView) -> AsyncIterator[bytes]:
    """Server-sent events, one at once and one for every snapshot of the cluster, until the engine is stopped."""
    async for cluster in engine.cluster.follow():
        report = DashboardReport(engine.state, engine.loading, msgspec.structs.asdict(engine.stats), cluster)
        yield b"data: " + msgspec.json.encode(report) + b"\n\n"


class ReportStream(EventSourceResponse):
    """Ends with its reports, and when its client leaves or takes nothing for long."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, headers=_HEADERS, send_timeout=_SEND_TIMEOUT_S, sep="\n")

    @override
    async def _listen_for_exit_signal_with_grace(self) -> None:
        """The stream outlasts SIGTERM, and shows how the server drains."""
        await anyio.sleep_forever()


def _file_endpoint(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def serve_file(_: Request) -> Response:
        return FileResponse(path, headers=_HEADERS)

    return serve_file
