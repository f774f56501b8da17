"""The way of a stream that goes on after a restart, which is chosen once an engine can take it."""

import logging

from distllm.engine.pipeline.placement.routing import Route
from distllm.scheduler.client import EngineState
from distllm.scheduler.messages import EngineRequest
from distllm.server.errors import GenerationFailed, InvalidRequest
from distllm.server.ports import EngineView, OutputStream
from distllm.server.resuming.stream_head import ServedModel, StreamHead
from distllm.server.routing.router import Router, Routing

logger = logging.getLogger("distllm.server")


class LateRouting:
    """To a generation it looks like an engine. `engine` is all of them; `model_name` is what they serve now."""

    def __init__(self, engine: EngineView, router: Router, head: StreamHead, model_name: str) -> None:
        self._engine = engine
        self._router = router
        self._head = head
        self._model_name = model_name
        self._routing: Routing | None = None

    @property
    def state(self) -> EngineState:
        return self._engine.state

    @property
    def route_now(self) -> Route:
        """Where it was begun, whatever its way is now: its events are those that another run had made."""
        return self._head.route

    async def wait_ready(self) -> None:
        """Until an engine is, or the one that the client wants. Raises EngineUnavailable."""
        asked = self._asked
        await (self._engine if asked is None else self._router.named(asked).engine).wait_ready()

    def submit(self, request: EngineRequest) -> OutputStream:
        """As Engine.submit. Raises GenerationFailed for a model to which the tokens of before mean nothing."""
        self._routing = self._routing or self._choose()
        return self._routing.submit(request)

    @property
    def _asked(self) -> Route | None:
        """The route that the client wants, if this server has it too."""
        head = self._head
        is_there = any(route.name == head.route for route in self._router.routes)
        return head.route if head.is_pinned and is_there else None

    def _choose(self) -> Routing:
        head = self._head
        try:
            routing = self._router.choose(head.plan, self._asked)
        except InvalidRequest as error:
            raise GenerationFailed(f"this server cannot go on with it: {error}") from None
        info = routing.route.info
        if ServedModel.of(self._model_name, info) != head.served:
            raise GenerationFailed("the server was started again with another model, which cannot go on with this")
        if info.numerics != head.numerics:
            logger.warning(
                "%s goes on in another order of sums; its tokens may differ by rounding", head.request_id
            )
        return routing
