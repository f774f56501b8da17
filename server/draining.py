"""A uvicorn server that ends in order: on a signal it refuses new work, lets live requests end, then stops."""

import asyncio
import logging
from types import FrameType

import uvicorn
from typing_extensions import override

from distllm.server.routing.serving import ServingEngine

logger = logging.getLogger("distllm.server")


class DrainingServer(uvicorn.Server):
    """The first signal drains for at most `drain_s` seconds; the second ends the server at once."""

    def __init__(self, config: uvicorn.Config, engine: ServingEngine, drain_s: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._drain: asyncio.Task[None] | None = None

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in a signal handler, so it only wakes the event loop."""
        self._loop.call_soon_threadsafe(self._begin_exit)

    def _begin_exit(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_and_exit(), name="drain")
        else:
            self.should_exit = self.force_exit = True

    async def _drain_and_exit(self) -> None:
        logger.info("draining: %d live requests, at most %g s", self._engine.num_live, self._drain_s)
        if not await self._engine.drain(self._drain_s):
            logger.warning("%d requests did not end in time and are cut off", self._engine.num_live)
            self._engine.fail_live("the server shut down before this request could end")
        self.should_exit = True
