"""The client keeps requests alive over the death of real engine processes (with a fake model inside)."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from distllm.engine.config import EngineConfig
from distllm.scheduler import spawn
from distllm.scheduler.client import EngineClient
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import EngineRequest, Loading, SequenceOutput, StartEngine
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull
from tests.clusters import sample_cluster
from tests.scheduler.fragile_engine import LATE_POISON, POISON, WAIT_S
from tests.scheduler.harness import make_request, undisturbed

MAX_LEN = 400
COMMAND = (sys.executable, "-m", "tests.scheduler.fragile_engine")


def fragile_client(
    model: str = "fake",
    max_waiting: int = 64,
    loading: list[Loading] | None = None,
    step_timeout_s: float = 60.0,
) -> EngineClient:
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32, max_waiting=max_waiting)
    seen = [] if loading is None else loading
    return EngineClient(StartEngine(EngineConfig(model=model), config), seen.append, COMMAND, step_timeout_s)


@asynccontextmanager
async def ready_client(
    model: str = "fake", max_waiting: int = 64, step_timeout_s: float = 60.0
) -> AsyncIterator[EngineClient]:
    client = fragile_client(model, max_waiting, step_timeout_s=step_timeout_s)
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.stop()


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until `is_so`, for at most 20 seconds."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.002)


def kill_engine(client: EngineClient) -> None:
    assert client.engine_pid is not None
    os.kill(client.engine_pid, signal.SIGKILL)


def long_request(number: int, n: int = 1) -> EngineRequest:
    return make_request(f"r{number}", [number, 2, 3, number], n=n, seed=number, max_tokens=100)


async def read(client: EngineClient, request: EngineRequest) -> dict[int, list[int]]:
    """All tokens by sequence; asserts that each sequence ends once, by length."""
    tokens: dict[int, list[int]] = {start.index: [] for start in request.sequences}
    ended: list[int] = []
    async with client.submit(request) as stream:
        async for output in stream:
            assert output.error is None
            tokens[output.index].extend(output.token_ids)
            if output.finish_reason is not None:
                assert output.finish_reason == "length"
                ended.append(output.index)
    assert sorted(ended) == sorted(tokens)
    return tokens


def expected(request: EngineRequest) -> dict[int, list[int]]:
    return {start.index: undisturbed(request, start.index, MAX_LEN)[0] for start in request.sequences}


async def outputs_of(client: EngineClient, request: EngineRequest) -> list[SequenceOutput]:
    async with client.submit(request) as stream:
        return [output async for output in stream]


async def test_streams_go_on_with_the_same_tokens_after_each_of_three_kills() -> None:
    requests = [long_request(number, n=1 + number % 2) for number in range(1, 17)]
    async with ready_client() as client:

        async def kill_thrice() -> None:
            for _ in range(3):
                await eventually(lambda: client.stats.generation_tokens_total >= 40)
                kill_engine(client)
                await eventually(lambda: client.state != "ready")

        killer = asyncio.create_task(kill_thrice())
        answers = await asyncio.gather(*(read(client, request) for request in requests))
        await killer
        assert client.num_restarts == 3
        assert client.num_live == 0
    assert answers == [expected(request) for request in requests]


@pytest.mark.parametrize(("prompt", "num_tokens"), [(POISON, 0), (LATE_POISON, 3)])
async def test_a_request_that_ends_the_engine_twice_fails_alone(prompt: list[int], num_tokens: int) -> None:
    """The late one kills where it decodes, after each step that computes its known tokens anew."""
    innocents = [long_request(number) for number in range(1, 7)]
    poison = make_request("poison", prompt, max_tokens=50)
    async with ready_client() as client:
        answers, ends = await asyncio.gather(
            asyncio.gather(*(read(client, request) for request in innocents)), outputs_of(client, poison)
        )
        assert client.state == "ready"
    assert [end.finish_reason for end in ends] == [None] * num_tokens + ["error"]
    assert "ended the engine twice" in (ends[-1].error or "")
    assert answers == [expected(request) for request in innocents]


async def test_an_engine_that_ends_in_every_second_step_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distllm.scheduler.client.MAX_DEATHS_WITHOUT_PROGRESS", 3)
    async with ready_client("doomed") as client:
        answers = await asyncio.gather(*(outputs_of(client, long_request(number)) for number in range(1, 4)))
        assert client.state == "failed"
        with pytest.raises(EngineUnavailable, match="the engine ended 3 times in a row"):
            client.submit(long_request(9))
    assert {answer[-1].finish_reason for answer in answers} == {"error"}


async def test_an_engine_that_cannot_be_started_for_a_while_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    request = long_request(1)
    start_process, num_tries = spawn._start_process, 0

    async def refuse_twice(
        command: Sequence[str], inherited: Sequence[int]
    ) -> tuple[socket.socket, asyncio.subprocess.Process]:
        nonlocal num_tries
        num_tries += 1
        if num_tries <= 2:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return await start_process(command, inherited)

    async with ready_client() as client:
        monkeypatch.setattr(spawn, "_start_process", refuse_twice)
        answer = asyncio.create_task(read(client, request))
        await eventually(lambda: client.stats.generation_tokens_total >= 10)
        kill_engine(client)
        assert await answer == expected(request)
        assert num_tries == 3


async def test_a_first_engine_that_cannot_be_started_is_said() -> None:
    client = EngineClient(StartEngine(EngineConfig(model="fake"), SchedulerConfig()), command=("/no/such/program",))
    await client.start()
    with pytest.raises(EngineUnavailable, match="no process can be started: No such file"):
        await client.wait_ready()
    await client.stop()


async def test_an_engine_that_hangs_is_replaced() -> None:
    requests = [long_request(number) for number in range(1, 4)]
    async with ready_client(step_timeout_s=1.0) as client:

        async def freeze() -> None:
            await eventually(lambda: client.stats.generation_tokens_total >= 40)
            assert client.engine_pid is not None
            os.kill(client.engine_pid, signal.SIGSTOP)

        freezing = asyncio.create_task(freeze())
        answers = await asyncio.gather(*(read(client, request) for request in requests))
        await freezing
        assert client.num_restarts == 1
    assert answers == [expected(request) for request in requests]


async def test_an_engine_of_which_a_process_is_stopped_while_it_loads_is_replaced(tmp_path: Path) -> None:
    async with ready_client(str(tmp_path / "was-here")) as client:
        assert client.num_restarts == 1
        assert await read(client, long_request(1)) == expected(long_request(1))


async def test_an_engine_that_says_nothing_while_it_loads_is_replaced_until_that_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distllm.scheduler.client.MAX_DEATHS_WITHOUT_PROGRESS", 2)
    silent = (sys.executable, "-c", "import time; time.sleep(60)")
    client = EngineClient(
        StartEngine(EngineConfig(model="fake"), SchedulerConfig()), command=silent, step_timeout_s=0.5
    )
    await client.start()
    with pytest.raises(EngineUnavailable, match=r"ended 2 times in a row .nothing was heard of it"):
        await client.wait_ready()
    await client.stop()


async def test_an_idle_engine_does_not_hang() -> None:
    async with ready_client(step_timeout_s=1.0) as client:
        assert await read(client, long_request(1))
        await asyncio.sleep(2.0)
        assert client.num_restarts == 0


async def test_a_successor_computes_in_the_same_order_of_sums() -> None:
    async with ready_client() as client:
        numerics, pid = client.info.numerics, client.engine_pid
        kill_engine(client)
        await eventually(lambda: client.state == "ready" and client.engine_pid not in (pid, None))
        assert client.info.numerics == numerics == f"those of process {pid}"


async def test_requests_sent_while_the_engine_restarts_are_served() -> None:
    async with ready_client() as client:
        kill_engine(client)
        await eventually(lambda: client.state != "ready")
        assert client.state == "restarting"
        assert await read(client, long_request(3)) == expected(long_request(3))


async def test_a_stream_that_is_left_is_aborted_in_the_engine() -> None:
    async with ready_client() as client:
        async with client.submit(long_request(1)) as stream:
            await anext(stream)
        await eventually(lambda: client.stats.num_running == 0)
        assert client.num_live == 0
        assert client.stats.num_free_blocks + client.stats.num_cached_blocks == client.stats.num_blocks


async def test_a_full_queue_refuses_with_a_time_to_wait() -> None:
    async with ready_client(max_waiting=0) as client:
        streams = [client.submit(long_request(number)) for number in range(8)]
        with pytest.raises(QueueFull, match="8 sequences are running or waiting") as refusal:
            client.submit(long_request(99))
        assert refusal.value.retry_after_s >= 1
        for stream in streams:
            async with stream:
                pass
        assert await read(client, long_request(99))


async def test_every_sequence_of_a_request_counts_in_the_queue() -> None:
    async with ready_client(max_waiting=0) as client:
        streams = [client.submit(long_request(1, n=7)), client.submit(long_request(2, n=5))]
        with pytest.raises(QueueFull, match="12 sequences are running or waiting"):
            client.submit(long_request(3))
        for stream in streams:
            async with stream:
                pass


async def test_draining_refuses_new_requests_and_waits_for_live_ones() -> None:
    async with ready_client() as client:
        reading = asyncio.create_task(read(client, long_request(1)))
        await asyncio.sleep(0)
        draining = asyncio.create_task(client.drain(timeout_s=20))
        await asyncio.sleep(0)
        with pytest.raises(EngineDraining):
            client.submit(long_request(2))
        assert await draining
        assert reading.done() or await reading == expected(long_request(1))


async def test_a_drain_that_takes_too_long_says_so() -> None:
    async with ready_client() as client:
        reading = asyncio.create_task(outputs_of(client, long_request(1)))
        await asyncio.sleep(0)
        assert not await client.drain(timeout_s=0.01)
        client.fail_live("time is up")
        outputs = await reading
        assert (outputs[-1].finish_reason, outputs[-1].error) == ("error", "time is up")


async def test_a_checkpoint_that_cannot_be_loaded_is_named() -> None:
    loading: list[Loading] = []
    client = fragile_client("broken", loading=loading)
    await client.start()
    with pytest.raises(EngineUnavailable, match="this checkpoint is broken"):
        await client.wait_ready()
    with pytest.raises(EngineUnavailable, match="this checkpoint is broken"):
        client.submit(long_request(1))
    assert loading == [Loading("pretending", 0.5)]
    await client.stop()


async def test_an_engine_that_dies_while_it_loads_is_not_tried_again() -> None:
    client = fragile_client("deadly")
    await client.start()
    with pytest.raises(EngineUnavailable, match=r"signal 9.*while it loaded the model"):
        await client.wait_ready()
    assert client.num_restarts == 0
    await client.stop()


async def test_stopping_ends_live_requests_and_the_process() -> None:
    async with ready_client() as client:
        assert client.engine_pid is not None
        process = psutil.Process(client.engine_pid)
        reading = asyncio.create_task(outputs_of(client, long_request(1)))
        await asyncio.sleep(0.05)
        await client.stop()
        assert (await reading)[-1].finish_reason == "error"
        assert not process.is_running()


async def test_an_engine_ends_when_its_front_end_closes_the_channel() -> None:
    client = fragile_client()
    await client.start()
    await client.wait_ready()
    assert client.engine_pid is not None
    process = psutil.Process(client.engine_pid)
    assert client._process is not None
    client._process._channel.close()
    await eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    await client.stop()


async def test_requests_are_handed_over_with_the_tokens_that_they_have() -> None:
    taken: list[EngineRequest] = []

    def take_the_first(request: EngineRequest) -> bool:
        taken.append(request)
        return request.request_id == "r1"

    async with ready_client() as client:
        staying = asyncio.create_task(read(client, long_request(2)))
        async with client.submit(long_request(1)) as stream:
            tokens = list((await anext(stream)).token_ids)
            client.hand_over(take_the_first)
            async for output in stream:
                assert output.finish_reason is None
                tokens += output.token_ids
        assert {request.request_id for request in taken} == {"r1", "r2"}
        [start] = next(request for request in taken if request.request_id == "r1").sequences
        assert start.output_ids == tokens == expected(long_request(1))[0][: len(tokens)]
        assert await staying == expected(long_request(2))
        await eventually(lambda: client.stats.num_running == 0)


async def test_the_cluster_is_known_while_its_engine_lives() -> None:
    async with ready_client("clustered") as client:
        await eventually(lambda: client.cluster.value is not None)
        assert client.cluster.value == sample_cluster()
        followed = client.cluster.follow()
        await anext(followed)
        kill_engine(client)
        assert await anext(followed) is None
        assert await anext(followed) == sample_cluster()
    with pytest.raises(StopAsyncIteration):
        await anext(followed)


async def test_an_engine_that_waits_for_peers_does_not_hang() -> None:
    async with ready_client("waiting", step_timeout_s=WAIT_S / 2) as client:
        num_restarts = client.num_restarts  # of a start that took long
        assert await read(client, long_request(1)) == expected(long_request(1))
        assert client.num_restarts == num_restarts


@pytest.mark.parametrize("model", ["fake", "broken", "deadly"])
async def test_whatever_comes_of_a_start_is_worth_waiting_for(model: str) -> None:
    client = fragile_client(model)
    await client.start()
    await asyncio.wait_for(client.wait_admitting(), 20)
    assert client.state == ("ready" if model == "fake" else "failed")
    await client.stop()


async def test_nobody_waits_for_a_start_that_ends_early() -> None:
    client = fragile_client()
    await client.start()
    waiting = asyncio.create_task(client.wait_admitting())
    assert await client.drain(5)
    await asyncio.wait_for(waiting, 5)
    assert client.state == "draining"
    await client.stop()
