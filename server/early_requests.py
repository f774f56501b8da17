"""Requests that come before machines enough have joined to serve the model: they wait, as later ones do."""

from starlette.types import Receive

from distllm.scheduler.refusals import EngineDraining, QueueFull
from distllm.server.disconnect import unless_disconnected
from distllm.server.ports import EngineView
from distllm.server.settings import FrontEndSettings

_RETRY_S = 10.0


class EarlyRequests:
    """Only a server over peers has any: where a model is merely being loaded, who asks is told to come again."""

    def __init__(self, engine: EngineView, settings: FrontEndSettings) -> None:
        self._engine = engine
        self._is_over_peers = settings.route == "pipeline"
        self._most = settings.max_live
        self._num_waiting = 0

    async def admit(self, receive: Receive) -> None:
        """Return once the model is served, or will not be; at once where nothing is waited for.

        `receive` must have yielded the whole body before. Raises QueueFull, ClientGone or EngineDraining.
        """
        if not self._is_over_peers or self._engine.state != "starting":
            return
        if self._num_waiting >= self._most:
            raise QueueFull(self._num_waiting, _RETRY_S)
        self._num_waiting += 1
        try:
            await unless_disconnected(receive, self._engine.wait_admitting())
        finally:
            self._num_waiting -= 1
        if self._engine.state in ("draining", "stopped"):
            raise EngineDraining
