"""A request's outputs on its route, noted there as they come; it goes on where another engine takes the request."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from distllm.engine.pipeline.placement.routing import Route
from distllm.scheduler.messages import EngineRequest, SequenceOutput
from distllm.server.ports import OutputStream

if TYPE_CHECKING:
    from distllm.server.routing.route import EngineRoute


class MeasuredStream:
    """Of one request. `pending_tokens` of its prompt are still to be computed, `num_unfinished` sequences run.

    `is_pinned` says that the client asked for this route: no other engine goes on with it. Else `on_move` is told
    of the route that does.
    """

    def __init__(
        self,
        route: "EngineRoute",
        request: EngineRequest,
        inner: OutputStream,
        is_pinned: bool,
        on_move: Callable[[Route], None],
    ) -> None:
        self.request_id = self._first_id = request.request_id
        self.pending_tokens = len(request.prompt_ids)
        self.is_pinned = is_pinned
        self._on_move = on_move
        self._route = route
        self._unfinished = {start.index for start in request.sequences}
        self._inners = [inner]  # the last is the present one, those before it are read to their ends first
        self._position = 0
        self._has_output = False
        self._max_tokens = request.params.max_tokens or 0
        self._num_said = {start.index: len(start.output_ids) for start in request.sequences}

    @property
    def num_unfinished(self) -> int:
        return len(self._unfinished)

    @property
    def num_running(self) -> int:
        """That have had a token."""
        return 0 if self.pending_tokens else len(self._unfinished)

    def remaining(self, said_part: float) -> list[float]:
        """Tokens that each of its sequences is still to have, where they have this part of those they may have."""
        return [max(1.0, said_part * self._max_tokens - self._num_said[index]) for index in self._unfinished]

    def go_on(self, route: "EngineRoute", request_id: str, inner: OutputStream) -> None:
        """Read on from `inner`, once the present engine, which has given up the request, has no more outputs."""
        self._route = route
        self.request_id = request_id
        self._inners.append(inner)
        self._on_move(route.name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._route.streams.pop(self, None)
        for inner in self._inners:
            await inner.__aexit__(exc_type, exc, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        while True:
            try:
                output = await self._inners[self._position].__anext__()
            except StopAsyncIteration:
                if self._position + 1 == len(self._inners):
                    raise
                self._position += 1
                continue
            if self._position > 0:
                output = msgspec.structs.replace(output, request_id=self._first_id)
                if self._has_output:
                    output = msgspec.structs.replace(output, num_cached_tokens=None, queue_s=None)
            self._note(output)
            self._has_output = True
            return output

    def abort_sequence(self, index: int) -> None:
        self._unfinished.discard(index)
        for inner in self._inners:
            inner.abort_sequence(index)

    def _note(self, output: SequenceOutput) -> None:
        if self.pending_tokens:
            self.pending_tokens = 0
            self._route.begin_prompt()
        self._route.note_stats()
        self._num_said[output.index] += len(output.token_ids)
        if output.finish_reason is not None:
            self._unfinished.discard(output.index)
            if output.finish_reason in ("stop", "length"):
                self._route.pace.note_end(self._max_tokens, self._num_said[output.index])
