"""The app on a real socket, for what only a connection shows: disconnects, early refusals, silence."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from fastapi import FastAPI

from distllm.server.http_protocol import ConnectionSettings, http_config


@contextlib.asynccontextmanager
async def served(app: FastAPI, settings: ConnectionSettings = ConnectionSettings()) -> AsyncIterator[str]:  # noqa: B008
    """Serve on loopback in this event loop; yields the base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(http_config(app, settings))
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def eventually(is_true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until a claim holds; fails after the time-out."""
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110 - what is waited for is another program's view
            await asyncio.sleep(0.005)
