"""One client's request in flight: submitted to the engine prompt by prompt, read back as one run of deltas.

Owns the engine streams; leaving the block aborts whatever still runs.
"""

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from distllm.engine.interface import TokenLogprobs
from distllm.engine.pipeline.placement.routing import Route
from distllm.scheduler.messages import EngineRequest, SequenceStart
from distllm.server.choice import Choice, ChoiceDelta
from distllm.server.errors import CutByShutdown, GenerationFailed
from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.merge import MergedStream
from distllm.server.metrics import Metrics
from distllm.server.ports import RoutedRunner
from distllm.server.prompt_run import PromptRun
from distllm.server.prompt_text import read_prompt
from distllm.server.protocol.responses import PromptTokensDetails, Usage
from distllm.server.routing.forecast import Forecast
from distllm.server.tokenizer import Tokenizer


class Generation:
    """Start it, then iterate, inside its block, for lists of deltas until every choice has finished.

    `seeds` has one for each prompt; `arrival_s` is time.time() when the request came. Choice j of prompt i has
    index i * num_sampled + j. All prompts are run by `runner`, as `forecast` says. Starting raises what
    Engine.submit raises, iterating GenerationFailed, or CutByShutdown where the server is ending.
    """

    def __init__(
        self,
        runner: RoutedRunner,
        forecast: Forecast,
        tokenizer: Tokenizer,
        metrics: Metrics,
        plan: GenerationPlan,
        request_id: str,
        seeds: Sequence[int],
        arrival_s: float,
    ) -> None:
        self.plan = plan
        self.request_id = request_id
        self.forecast = forecast
        self._seeds = seeds
        self._arrival_s = arrival_s
        self._runner = runner
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._runs: list[PromptRun] = []
        self._stack = AsyncExitStack()
        self._num_unfinished = len(plan.prompts) * plan.num_sampled
        self._merged: MergedStream

    async def start(self) -> None:
        """Submit every prompt, or none."""
        try:
            for number, prompt in enumerate(self.plan.prompts):
                self._runs.append(await self._start(number, prompt))
            self._merged = await self._stack.enter_async_context(MergedStream([run.stream for run in self._runs]))
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[ChoiceDelta]:
        if self.is_finished:
            raise StopAsyncIteration
        number, output = await self._merged.__anext__()
        try:
            deltas = self._runs[number].accept(output)
        except GenerationFailed as error:
            if self._runner.state in ("draining", "stopped"):
                raise CutByShutdown(str(error)) from None
            raise
        self._num_unfinished -= sum(delta.finish_reason is not None for delta in deltas)
        return deltas

    @property
    def moved_to(self) -> Route | None:
        """Where it runs, if that is not where it was sent."""
        route = self._runner.route_now
        return None if route == self.forecast.route else route

    @property
    def headers(self) -> dict[str, str]:
        """Of its response: the route on which it runs, and why."""
        moved_to = self.moved_to
        return (self.forecast if moved_to is None else self.forecast.after_move(moved_to)).headers

    @property
    def is_finished(self) -> bool:
        """Whether every choice has its last delta."""
        return self._num_unfinished == 0

    @property
    def choices(self) -> list[Choice]:
        return [choice for run in self._runs for choice in run.choices]

    def prompt_logprobs(self, index: int) -> list[TokenLogprobs]:
        """Scores of the prompt's tokens after the first, for the choice of that index in a whole response."""
        return self._runs[index // self.plan.n].prompt_logprobs

    def usage(self) -> Usage:
        """Tokens so far."""
        num_prompt = sum(len(prompt.token_ids) for prompt in self.plan.prompts)
        num_completion = sum(choice.num_tokens for choice in self.choices)
        num_cached = sum(run.num_cached_tokens for run in self._runs)
        return Usage(num_prompt, num_completion, num_prompt + num_completion, PromptTokensDetails(num_cached))

    async def _start(self, number: int, prompt: PromptPlan) -> PromptRun:
        num_sampled = self.plan.num_sampled
        request = EngineRequest(
            request_id=f"{self.request_id}-{number}",
            prompt_ids=prompt.token_ids,
            params=prompt.params,
            seed=self._seeds[number],
            sequences=[SequenceStart(index) for index in range(num_sampled)],
            priority=self.plan.priority,
            arrival_s=self._arrival_s,
        )
        prompt_text = await read_prompt(self._tokenizer, self.plan, prompt)
        stream = await self._stack.enter_async_context(self._runner.submit(request))
        observer = self._stack.enter_context(
            self._metrics.observe(len(prompt.token_ids), num_sampled, self.forecast)
        )
        choices = [
            Choice(number * num_sampled + index, self.plan, prompt, prompt_text, self._tokenizer)
            for index in range(num_sampled)
        ]
        return PromptRun(choices, stream, observer, self.plan, prompt)


def choose_seeds(plan: GenerationPlan) -> tuple[int, ...]:
    """The plan's seed for every prompt, or else one at random for each."""
    return tuple(secrets.randbits(63) if plan.seed is None else plan.seed for _ in plan.prompts)
