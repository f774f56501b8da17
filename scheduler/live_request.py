"""The front end's record of one live request: its tokens so far, from which any engine can continue it."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import msgspec

from distllm.scheduler.messages import EngineRequest, SequenceOutput, SequenceStart


class LiveRequest:
    """A request between its submission and its last terminal output."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self._unfinished = {start.index: list(start.output_ids) for start in request.sequences}
        self._outputs: deque[SequenceOutput] = deque()
        self._changed = asyncio.Event()
        self._has_output = False
        self._has_prompt_logprobs = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def is_finished(self) -> bool:
        return not self._unfinished

    @property
    def has_outputs(self) -> bool:
        """Whether `next_output` has one at once."""
        return bool(self._outputs)

    def accept(self, output: SequenceOutput) -> None:
        """Record an output and hand it to the reader; what belongs to an ended sequence is dropped."""
        known_ids = self._unfinished.get(output.index)
        if known_ids is None:
            return
        known_ids.extend(output.token_ids)
        if self._has_output:
            output = msgspec.structs.replace(output, num_cached_tokens=None, queue_s=None)
        self._has_output = True
        self._has_prompt_logprobs |= output.prompt_logprobs is not None
        if output.finish_reason is not None:
            del self._unfinished[output.index]
        self._outputs.append(output)
        self._changed.set()

    def drop_sequence(self, index: int) -> None:
        """Its reader has what it wants of the sequence; no terminal output follows."""
        self._unfinished.pop(index, None)
        self._changed.set()

    def drop(self) -> None:
        self._unfinished.clear()
        self._changed.set()

    def fail(self, reason: str) -> None:
        """End every unfinished sequence with an error."""
        for index in list(self._unfinished):
            self.accept(SequenceOutput(self.request_id, index, [], finish_reason="error", error=reason))

    def resumption(self) -> EngineRequest:
        """The request as another engine must get it: its unfinished sequences with the tokens they have."""
        params = self.request.params
        if self._has_prompt_logprobs:
            params = replace(params, prompt_logprobs=None)
        starts = [SequenceStart(index, list(ids)) for index, ids in self._unfinished.items()]
        return msgspec.structs.replace(self.request, params=params, sequences=starts)

    async def next_output(self) -> SequenceOutput | None:
        """The next output in order, None after the last."""
        while not self._outputs:
            if self.is_finished:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._outputs.popleft()


class RequestStream:
    """The reader's side of a live request. Leaving the block ends in the engine whatever still runs."""

    def __init__(self, live: LiveRequest, abort: Callable[[list[int] | None], None]) -> None:
        self._live = live
        self._abort = abort

    async def __aenter__(self) -> "RequestStream":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._live.is_finished:
            self._live.drop()
            self._abort(None)

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> SequenceOutput:
        output = await self._live.next_output()
        if output is None:
            raise StopAsyncIteration
        return output

    def abort_sequence(self, index: int) -> None:
        """End one sequence early; the stream ends when no sequence is left."""
        self._live.drop_sequence(index)
        self._abort([index])
