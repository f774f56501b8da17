"""An engine without a model: answers with the prompt's own tokens over and over, with made-up, fixed logprobs."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from distllm.engine.interface import ExecutorInfo, TokenLogprobs
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.scheduler.client import EngineState
from distllm.scheduler.latest import Latest
from distllm.scheduler.messages import EngineRequest, Loading, SequenceOutput
from distllm.scheduler.refusals import EngineUnavailable
from distllm.scheduler.stats import EngineStats

Script = Callable[[EngineRequest, int], list[int]]


def echo_prompt(request: EngineRequest, index: int) -> list[int]:
    """What sequence `index` would say, without end: the prompt, begun at its token `index`."""
    prompt = request.prompt_ids
    start = index % len(prompt)
    return prompt[start:] + prompt[:start]


def fake_logprob(token_id: int, position: int) -> float:
    return -0.01 * (1 + (token_id * 7 + position * 3) % 90)


class FakeEngine:
    """`refusal` is raised by submit, `delay_s` passes before each token, `fail_after` tokens an error comes.

    `aborted` lists (request id, indices or None) as the front end ended them.
    """

    def __init__(self, vocab_size: int, max_model_len: int = 512, script: Script = echo_prompt) -> None:
        self.script = script
        self.stats = EngineStats(num_blocks=1000, num_free_blocks=1000)
        self.loading: Loading | None = None
        self.num_restarts = 0
        self.cluster: Latest[ClusterSnapshot | None] = Latest(None)
        self.state: EngineState = "ready"
        self.changed = asyncio.Event()
        self.seconds_since_progress = 0.0
        self.refusal: Exception | None = None
        self.delay_s = 0.0
        self.fail_after: int | None = None
        self.requests: list[EngineRequest] = []
        self.aborted: list[tuple[str, list[int] | None]] = []
        self.num_live = 0
        self.executor_info = ExecutorInfo(
            num_blocks=1000,
            block_size=16,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            model_type="fake",
            dtype="float32",
            device="cpu",
            kernels="none",
            numerics="fake",
            weight_bytes=0,
            kv_block_bytes=0,
            load_s=0.0,
        )

    @property
    def failure(self) -> str | None:
        return None if self.state in ("ready", "draining") else f"the fake engine is {self.state}"

    @property
    def info(self) -> ExecutorInfo:
        if self.state == "starting":
            raise EngineUnavailable("the model is still being loaded")
        return self.executor_info

    async def wait_ready(self) -> None:
        """A fake engine is ready whenever its state says so."""

    async def wait_admitting(self) -> None:
        while self.state == "starting":
            await self.changed.wait()

    def become(self, state: EngineState) -> None:
        self.state = state
        self.changed.set()

    def submit(self, request: EngineRequest) -> "FakeStream":
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.num_live += 1
        return FakeStream(self, request)


class FakeStream:
    """Yields one token of each sequence in turn."""

    def __init__(self, engine: FakeEngine, request: EngineRequest) -> None:
        self._engine = engine
        self._request = request
        self._indices = [start.index for start in request.sequences]
        self._num_tokens = {start.index: len(start.output_ids) for start in request.sequences}
        self._turn = 0
        self._is_first = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.num_live -= 1
        if self._indices:
            self._engine.aborted.append((self._request.request_id, None))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        if not self._indices:
            raise StopAsyncIteration
        await asyncio.sleep(self._engine.delay_s)
        index = self._indices[self._turn % len(self._indices)]
        output = self._next_output(index)
        self._is_first = False
        if output.finish_reason is None:
            self._turn += 1
        else:
            self._indices.remove(index)
        return output

    def abort_sequence(self, index: int) -> None:
        self._engine.aborted.append((self._request.request_id, [index]))
        self._indices.remove(index)

    def _next_output(self, index: int) -> SequenceOutput:
        request, params = self._request, self._request.params
        position = self._num_tokens[index]
        if position == self._engine.fail_after:
            return SequenceOutput(
                request.request_id, index, [], finish_reason="error", error="the fake engine failed"
            )
        if params.max_tokens == 0:
            return self._output(index, [], None, "length")
        self._num_tokens[index] += 1
        said = self._engine.script(request, index)
        token_id = said[position % len(said)]
        stop_ids = (*params.eos_token_ids, *params.stop_token_ids)
        stop_token_id = token_id if token_id in stop_ids and position >= params.min_tokens else None
        reason = "stop" if stop_token_id is not None else "length" if position + 1 == params.max_tokens else None
        return self._output(index, [token_id], stop_token_id, reason)

    def _output(
        self, index: int, token_ids: list[int], stop_token_id: int | None, reason: str | None
    ) -> SequenceOutput:
        params = self._request.params
        num_prompt = len(self._request.prompt_ids)
        position = num_prompt + self._num_tokens[index]
        return SequenceOutput(
            self._request.request_id,
            index,
            token_ids,
            finish_reason=reason,  # type: ignore[arg-type]
            stop_token_id=stop_token_id,
            logprobs=None
            if params.logprobs is None
            else [self._scores(token_id, position, params.logprobs) for token_id in token_ids],
            prompt_logprobs=self._prompt_scores() if self._is_first else None,
            num_cached_tokens=num_prompt // 2 if self._is_first else None,
            queue_s=0.001 if self._is_first else None,
        )

    def _prompt_scores(self) -> list[TokenLogprobs] | None:
        num_top = self._request.params.prompt_logprobs
        if num_top is None:
            return None
        ids = self._request.prompt_ids[1:]
        return [self._scores(token_id, position, num_top) for position, token_id in enumerate(ids, 1)]

    def _scores(self, token_id: int, position: int, num_top: int) -> TokenLogprobs:
        """The chosen token is the second likeliest."""
        others = [(token_id + step) % self._engine.executor_info.vocab_size for step in range(1, num_top + 1)]
        top_ids = [*others[:1], token_id, *others[1:]][:num_top]
        logprob = fake_logprob(token_id, position)
        top = [logprob + 0.005, logprob, *(logprob - 0.1 * step for step in range(1, num_top))][:num_top]
        return TokenLogprobs(token_id, logprob, tuple(top_ids), tuple(top))
