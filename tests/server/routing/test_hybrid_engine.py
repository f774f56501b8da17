"""Two engine processes (with a fake model inside) as one: what one cannot go on with, the other does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from distllm.engine.pipeline.placement.routing import LatencyTarget
from distllm.scheduler.client import EngineClient
from distllm.scheduler.messages import EngineRequest, SequenceOutput
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable
from distllm.server.routing.hybrid_engine import HybridEngine
from distllm.server.routing.measured_stream import MeasuredStream
from distllm.server.routing.route import EngineRoute
from tests.scheduler.test_client import eventually, expected, fragile_client, kill_engine, long_request


class Pair:
    """An engine here, and one over peers."""

    def __init__(self, here: str, over_peers: str, patience_s: float) -> None:
        self.here, self.over_peers = fragile_client(here), fragile_client(over_peers)
        self.local = EngineRoute("local", self.here, max_running=8, max_live=72, token_budget=64)
        self.pipeline = EngineRoute("pipeline", self.over_peers, max_running=8, max_live=72, token_budget=64)
        members: list[tuple[EngineRoute, EngineClient]] = [
            (self.local, self.here),
            (self.pipeline, self.over_peers),
        ]
        self.engine = HybridEngine(members, LatencyTarget(), patience_s)


@asynccontextmanager
async def started(here: str = "fake", over_peers: str = "fake", patience_s: float = 60.0) -> AsyncIterator[Pair]:
    pair = Pair(here, over_peers, patience_s)
    await pair.engine.start()
    try:
        yield pair
    finally:
        await pair.engine.stop()


@asynccontextmanager
async def both_ready(over_peers: str = "fake", patience_s: float = 60.0) -> AsyncIterator[Pair]:
    async with started("fake", over_peers, patience_s) as pair:
        await pair.here.wait_ready()
        await pair.over_peers.wait_ready()
        for route in (pair.local, pair.pipeline):
            await pair.engine.prober.measured(route)
        yield pair


async def read(stream: MeasuredStream) -> tuple[dict[int, list[int]], list[SequenceOutput]]:
    """All tokens by sequence, and the outputs that ended one."""
    tokens: dict[int, list[int]] = {}
    ends: list[SequenceOutput] = []
    async with stream:
        async for output in stream:
            tokens.setdefault(output.index, []).extend(output.token_ids)
            if output.finish_reason is not None:
                ends.append(output)
    return tokens, ends


async def expect_whole(stream: MeasuredStream, request: EngineRequest) -> None:
    tokens, ends = await read(stream)
    assert tokens == expected(request)
    assert [end.finish_reason for end in ends] == ["length"] * len(tokens)


async def test_it_is_ready_with_the_first_and_says_why_the_other_is_not() -> None:
    async with started(over_peers="broken") as pair:
        await pair.engine.wait_ready()
        await eventually(lambda: pair.over_peers.state == "failed")
        assert pair.engine.state == "ready"
        assert pair.engine.failure is None
        assert pair.engine.info == pair.here.info
        assert pair.engine.router.unavailable == {"pipeline": "this checkpoint is broken"}


async def test_where_none_can_start_every_reason_is_said() -> None:
    async with started("broken", "broken") as pair:
        with pytest.raises(EngineUnavailable, match=r"local: this checkpoint is broken; pipeline: this .* broken"):
            await pair.engine.wait_ready()
        assert pair.engine.state == "failed"


@pytest.mark.parametrize(("here", "over_peers"), [("broken", "fake"), ("fake", "broken"), ("broken", "broken")])
async def test_whatever_comes_of_its_start_is_worth_waiting_for(here: str, over_peers: str) -> None:
    async with started(here, over_peers) as pair:
        await asyncio.wait_for(pair.engine.wait_admitting(), 20)
        assert pair.engine.state == ("ready" if "fake" in (here, over_peers) else "failed")


async def test_every_route_is_measured_once_its_engine_is_ready() -> None:
    async with both_ready() as pair:
        assert pair.pipeline.pace.is_measured
        assert 0.001 < (pair.pipeline.pace.tpot_s(1) or 0) < 0.5
        assert not pair.pipeline.streams


async def test_requests_that_wait_for_machines_go_on_here_with_the_same_tokens() -> None:
    async with both_ready("waiting", patience_s=0.2) as pair:
        requests = [long_request(number, n=2) for number in range(4)]
        await asyncio.gather(*(expect_whole(pair.pipeline.submit(request), request) for request in requests))
        assert pair.here.stats.generation_tokens_total >= 4 * 2 * 100
        assert not pair.local.streams


async def test_a_request_whose_client_asked_for_the_pipeline_waits_there() -> None:
    async with both_ready("waiting", patience_s=0.2) as pair:
        before = pair.here.stats.generation_tokens_total
        await expect_whole(pair.pipeline.submit(long_request(1), is_pinned=True), long_request(1))
        assert pair.here.stats.generation_tokens_total == before


async def test_requests_go_on_elsewhere_in_the_middle_when_their_engine_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with both_ready() as pair:
        monkeypatch.setattr("distllm.scheduler.client.MAX_DEATHS_WITHOUT_PROGRESS", 1)
        monkeypatch.setattr("distllm.scheduler.client.STEPS_OF_PROGRESS", 10**6)
        request = long_request(3)
        stream = pair.local.submit(request)
        tokens: list[int] = []
        async with stream:
            async for output in stream:
                tokens += output.token_ids
                if len(tokens) == 10:
                    kill_engine(pair.here)
                assert output.error is None
        assert tokens == expected(request)[0]
        assert pair.here.state == "failed"
        assert pair.engine.state == "ready"
        assert "pipeline" not in pair.engine.router.unavailable


async def test_an_engine_that_is_started_anew_keeps_its_requests() -> None:
    async with both_ready() as pair:
        request, before = long_request(4), pair.over_peers.stats.generation_tokens_total
        stream = pair.local.submit(request)
        reading = asyncio.create_task(expect_whole(stream, request))
        await eventually(lambda: stream.pending_tokens == 0)
        kill_engine(pair.here)
        await reading
        assert pair.here.num_restarts == pair.engine.num_restarts == 1
        assert pair.over_peers.stats.generation_tokens_total == before


async def test_a_request_stays_where_the_other_engine_is_full() -> None:
    async with both_ready("waiting", patience_s=0.2) as pair:
        others = [pair.local.submit(long_request(number, n=36)) for number in (6, 7)]
        before = pair.here.num_live
        stream = pair.pipeline.submit(long_request(5))
        await asyncio.sleep(0.6)
        assert pair.here.num_live <= before
        assert stream in pair.pipeline.streams
        for other in others:
            await other.__aexit__(None, None, None)
        await expect_whole(stream, long_request(5))


async def test_draining_drains_both() -> None:
    async with both_ready() as pair:
        streams = [route.submit(long_request(number)) for number, route in enumerate((pair.local, pair.pipeline))]
        draining = asyncio.create_task(pair.engine.drain(20.0))
        await eventually(lambda: pair.engine.state == "draining")
        for route in (pair.local, pair.pipeline):
            with pytest.raises(EngineDraining):
                route.submit(long_request(9))
        for number, stream in enumerate(streams):
            await expect_whole(stream, long_request(number))
        assert await draining
