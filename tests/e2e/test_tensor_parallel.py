"""Two ranks through the whole server: the tokens of one, through the death or the hang of either."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from openai import AsyncOpenAI

from tests.conftest import RunningServer, StartServer, is_soon, running_server

NUM_STREAMS = 12
MAX_TOKENS = 120

Victim = Callable[[RunningServer], int]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RunningServer]:
    with running_server(
        ["--dtype", "float32", "--tensor-parallel-size", "2", "--rank-check-steps", "5"], {}
    ) as server:
        yield server


def engine(server: RunningServer) -> int:
    return server.engine_pid


def second_rank(server: RunningServer) -> int:
    (rank,) = psutil.Process(server.engine_pid).children()
    return rank.pid


async def stream_text(url: str, number: int, on_chunk: Callable[[], None] = lambda: None) -> str:
    """Greedy, plainly sampled, filtered in two ways, and penalised streams, each with its seed."""
    kind: dict[str, float] = (
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1, "top_k": 40},
        {"temperature": 0.8, "frequency_penalty": 0.5},
    )[number % 5]  # type: ignore[assignment]
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        stream = await client.completions.create(
            model="distllm-embedded",
            prompt=f"Once upon a time there were {number} little birds",
            max_tokens=MAX_TOKENS,
            seed=number,
            stream=True,
            extra_body={"ignore_eos": True, **kind},
        )
        pieces = []
        async for chunk in stream:
            pieces.append(chunk.choices[0].text)
            on_chunk()
    assert chunk.choices[0].finish_reason == "length"
    return "".join(pieces)


async def all_streams(url: str, on_chunk: Callable[[], None] = lambda: None) -> list[str]:
    return list(await asyncio.gather(*(stream_text(url, number, on_chunk) for number in range(NUM_STREAMS))))


async def test_two_ranks_give_the_text_of_one(two_ranks: RunningServer, start_server: StartServer) -> None:
    one_rank = start_server("--dtype", "float32")
    assert await all_streams(two_ranks.url) == await all_streams(one_rank.url)


@pytest.mark.parametrize(
    ("victim", "signal_number"),
    [
        (second_rank, signal.SIGKILL),
        pytest.param(second_rank, signal.SIGSTOP, marks=pytest.mark.soak),
        pytest.param(engine, signal.SIGKILL, marks=pytest.mark.soak),
        (engine, signal.SIGSTOP),
    ],
)
async def test_no_stream_is_harmed_when_a_rank_dies_or_hangs(
    two_ranks: RunningServer, victim: Victim, signal_number: signal.Signals
) -> None:
    undisturbed = await all_streams(two_ranks.url)
    ranks = {engine(two_ranks), second_rank(two_ranks)}
    num_chunks, struck_at_s = 0, 0.0

    def strike_in_the_middle() -> None:
        nonlocal num_chunks, struck_at_s
        num_chunks += 1
        if num_chunks == NUM_STREAMS * MAX_TOKENS // 4:
            os.kill(victim(two_ranks), signal_number)
            struck_at_s = time.monotonic()

    watch = asyncio.create_task(_seconds_until_gone(ranks, lambda: struck_at_s))
    assert await all_streams(two_ranks.url, strike_in_the_middle) == undisturbed
    assert await watch < 4.0
    assert ranks.isdisjoint({engine(two_ranks), second_rank(two_ranks)})


async def _seconds_until_gone(pids: set[int], struck_at_s: Callable[[], float]) -> float:
    """From the strike until every one of the processes has ended."""
    while not struck_at_s() or any(psutil.pid_exists(pid) for pid in pids):  # noqa: ASYNC110 - others' processes
        await asyncio.sleep(0.05)
    return time.monotonic() - struck_at_s()


def test_nothing_is_left_when_the_front_end_is_killed(start_server: StartServer) -> None:
    segments_before = set(Path("/dev/shm").iterdir())
    server = start_server("--tensor-parallel-size", "2")
    ranks = [psutil.Process(engine(server)), psutil.Process(second_rank(server))]
    server.process.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert len(gone) == 2
    assert not alive
    new = set(Path("/dev/shm").iterdir()) - segments_before
    assert is_soon(lambda: not any(path.exists() for path in new))  # another test's are there for a moment


def test_nothing_is_left_when_the_server_is_asked_to_end(start_server: StartServer) -> None:
    server = start_server("--tensor-parallel-size", "2")
    ranks = [psutil.Process(engine(server)), psutil.Process(second_rank(server))]
    assert server.terminate() == 0
    assert not any(rank.is_running() for rank in ranks)
    assert not [line for line in server.log if "Traceback" in line or "rank 1 ended" in line]


def test_more_ranks_than_heads_are_refused_in_one_line(start_server: StartServer) -> None:
    with pytest.raises(AssertionError, match="attention heads cannot be divided over 9 ranks"):
        start_server("--tensor-parallel-size", "9")


@pytest.mark.soak
async def test_three_ranks_that_are_lost_again_and_again_lose_no_token(start_server: StartServer) -> None:
    """On fewer than three cores they sum through gloo."""
    one_rank = start_server("--dtype", "float32")
    server = start_server("--dtype", "float32", "--tensor-parallel-size", "3", "--rank-timeout-s", "5")
    expected = await all_streams(one_rank.url)
    source = random.Random(7)
    for _ in range(4):
        num_chunks, fatal = 0, source.randrange(1, NUM_STREAMS * MAX_TOKENS)

        def strike() -> None:
            nonlocal num_chunks
            num_chunks += 1
            if num_chunks == fatal:  # noqa: B023 - called within its round
                engine_process = psutil.Process(server.engine_pid)
                victims = [engine_process, *engine_process.children()]
                os.kill(source.choice(victims).pid, source.choice([signal.SIGKILL, signal.SIGSTOP]))

        assert await all_streams(server.url, strike) == expected
