"""Serves the page of a cluster beside the API, in the same event loop."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from typing_extensions import override

from distllm.engine.pipeline.security.host import is_loopback
from distllm.server.cluster_config import CoordinatorSection, load_cluster_config
from distllm.server.config import ClusterSection
from distllm.server.dashboard.app import create_dashboard
from distllm.server.listening import CannotServe, listen, url_of
from distllm.server.ports import EngineView

logger = logging.getLogger("distllm.server")

_STOP_S = 1
_MAX_CONNECTIONS = 100


@contextlib.asynccontextmanager
async def show_cluster(cluster: ClusterSection, engine: EngineView) -> AsyncIterator[None]:
    """Have the page where this server is a coordinator, until the block is left. A port that is taken is no reason
    not to serve. Raises InvalidSettings.
    """
    async with contextlib.AsyncExitStack() as stack:
        if cluster.coordinator is not None:
            coordinator = load_cluster_config(cluster.coordinator, cluster.allow_plaintext).coordinator
            try:
                listener = stack.enter_context(listen_for_page(coordinator))
            except CannotServe as error:
                logger.warning("the cluster's page is not served: %s", error)
            else:
                hosts = page_names(coordinator.page_host)
                await stack.enter_async_context(serve_page(engine, hosts, listener))
        yield


def listen_for_page(coordinator: CoordinatorSection) -> socket.socket:
    """Raises CannotServe."""
    remedy = "see coordinator.dashboard_port and coordinator.dashboard_host"
    return listen(coordinator.page_host, coordinator.dashboard_port, remedy)


def page_names(host: str) -> list[str]:
    """The names under which browsers may ask for a page at `host`."""
    if not is_loopback(host):
        return ["*"]
    return ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host]


@contextlib.asynccontextmanager
async def serve_page(engine: EngineView, hosts: list[str], listener: socket.socket) -> AsyncIterator[None]:
    """Serve on an open socket until the block is left. Streams have ended by then if the engine was stopped."""
    config = uvicorn.Config(
        create_dashboard(engine, hosts),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_S,
    )
    server = _GuestServer(config)
    serving = asyncio.create_task(server.serve([listener]), name="dashboard")
    logger.info("the cluster is shown at %s", url_of(listener))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _GuestServer(uvicorn.Server):
    """Leaves signals to the server of the API."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
