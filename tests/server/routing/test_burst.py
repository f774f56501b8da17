"""What is predicted of requests that arrive at once at a route that knows no more than its own measurement."""

import asyncio
import random
from collections.abc import Iterable
from statistics import fmean

import pytest

from distllm.engine.pipeline.placement.routing import LatencyTarget, RouteEstimate, estimate_route
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import EngineRequest, SequenceStart
from distllm.server.routing.measured_stream import MeasuredStream
from distllm.server.routing.probing import Prober
from distllm.server.routing.route import EngineRoute, Size
from tests.server.routing.timed_engine import TimedEngine

NEW_TOKENS = 48


class Burst:
    """Requests at a cold route, and what was predicted of each when it came."""

    def __init__(self, max_running: int = 16, token_budget: int = 128) -> None:
        config = SchedulerConfig(max_num_seqs=max_running, max_num_batched_tokens=token_budget)
        self.engine = TimedEngine(config)
        self.route = EngineRoute("local", self.engine, max_running, config.max_live_requests, token_budget)
        self.begun_s: dict[str, float] = {}
        self.predicted: dict[str, RouteEstimate] = {}
        self._draw = random.Random(0)

    async def measure(self) -> None:
        prober = Prober()
        await prober.measured(self.route)
        assert self.route.pace.is_measured

    async def run(self, num_requests: int, num_prompt: int) -> list[str]:
        """All that arrive at once, to their ends."""
        streams = self.arrive(num_requests, num_prompt)
        await read_all(streams)
        return [stream.request_id for stream in streams]

    def arrive(self, num_requests: int, num_prompt: int) -> list[MeasuredStream]:
        return [self._submit(f"{self.engine.now_s}-{number}", num_prompt) for number in range(num_requests)]

    def ttft_s(self, name: str) -> float:
        return self.engine.times_s[name][0] - self.begun_s[name]

    def tpot_s(self, name: str) -> float:
        times_s = self.engine.times_s[name]
        return (times_s[-1] - times_s[0]) / (len(times_s) - 1)

    def _submit(self, name: str, num_prompt: int) -> MeasuredStream:
        size = Size(num_prompt, NEW_TOKENS, num_prompt + NEW_TOKENS, 1)
        state = self.route.route_state(size)
        self.predicted[name] = estimate_route(state, num_prompt, NEW_TOKENS, LatencyTarget())
        self.begun_s[name] = self.engine.now_s
        ids = [self._draw.randrange(600) for _ in range(num_prompt)]
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
        return self.route.submit(EngineRequest(name, ids, params, 0, [SequenceStart(0)]))


async def read(stream: MeasuredStream) -> None:
    async with stream:
        async for _ in stream:
            await asyncio.sleep(0)


async def read_all(streams: list[MeasuredStream]) -> None:
    await asyncio.gather(*map(read, streams))


def ratio(predicted: Iterable[float], actual: Iterable[float]) -> float:
    return fmean(predicted) / fmean(actual)


@pytest.mark.parametrize("num_requests", [1, 8, 32])
@pytest.mark.parametrize("num_prompt", [24, 96, 400])
async def test_first_tokens_of_a_burst_at_a_cold_route_come_when_predicted(
    num_requests: int, num_prompt: int
) -> None:
    """In all, and within the burst: half of 32 wait for a place."""
    burst = Burst()
    await burst.measure()
    names = await burst.run(num_requests, num_prompt)
    for part in (names, names[: len(names) // 2 + 1], names[len(names) // 2 :]):
        found = ratio((burst.predicted[name].ttft_s for name in part), map(burst.ttft_s, part))
        assert 0.7 < found < 1.3, f"predicted beside actual TTFT of {part}"


@pytest.mark.parametrize("num_requests", [1, 8, 32])
async def test_the_time_a_token_takes_in_a_burst_is_that_of_a_batch(num_requests: int) -> None:
    """Prompts that come later slow a request, and nobody knows of them: so it is half of actual at least."""
    burst = Burst()
    await burst.measure()
    names = await burst.run(num_requests, 96)
    found = ratio((burst.predicted[name].tpot_s for name in names), map(burst.tpot_s, names))
    assert 0.5 < found < 1.1


async def test_the_last_of_a_burst_knows_what_its_tokens_take() -> None:
    burst = Burst()
    await burst.measure()
    *_, last = await burst.run(8, 24)
    assert burst.predicted[last].tpot_s == pytest.approx(burst.tpot_s(last), rel=0.05)


async def test_requests_after_a_burst_are_predicted_by_what_still_runs() -> None:
    burst = Burst()
    await burst.measure()
    streams = burst.arrive(8, 96)
    while len(burst.engine.times_s[streams[-1].request_id]) < NEW_TOKENS // 2:
        for stream in streams:
            await anext(stream)
    [late] = burst.arrive(1, 96)
    await read_all([*streams, late])
    assert burst.predicted[late.request_id].ttft_s == pytest.approx(burst.ttft_s(late.request_id), rel=0.2)


async def test_what_is_computed_of_a_long_prompt_is_not_waited_for_again() -> None:
    burst = Burst()
    await burst.measure()
    long = burst.arrive(1, 3000)
    for _ in range(20):
        burst.engine.step()
    [late] = burst.arrive(1, 24)
    await read_all([*long, late])
    assert burst.predicted[late.request_id].ttft_s == pytest.approx(burst.ttft_s(late.request_id), rel=0.2)
