"""An engine that dies is replaced, and every stream goes on with the tokens of an undisturbed run."""

import asyncio
import os
import signal
from collections.abc import Callable

import httpx
import psutil
import pytest
from openai import AsyncOpenAI

from tests.conftest import RunningServer, StartServer

NUM_STREAMS = 16
MAX_TOKENS = 160
PROMPTS = [f"Once upon a time there were {number} little birds" for number in range(NUM_STREAMS)]


def sdk(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


async def stream_text(client: AsyncOpenAI, number: int, on_chunk: Callable[[], None] = lambda: None) -> str:
    """Half of the streams are greedy, half sampled with a seed; none stops by itself."""
    stream = await client.completions.create(
        model="distllm-embedded",
        prompt=PROMPTS[number],
        max_tokens=MAX_TOKENS,
        temperature=0.0 if number % 2 else 1.0,
        seed=number,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces = []
    async for chunk in stream:
        pieces.append(chunk.choices[0].text)
        on_chunk()
    assert chunk.choices[0].finish_reason == "length"
    return "".join(pieces)


async def test_streams_survive_sigkill_of_the_engine_with_the_same_tokens(embedded_server: RunningServer) -> None:
    async with sdk(embedded_server.url) as client:
        undisturbed = await asyncio.gather(*(stream_text(client, number) for number in range(NUM_STREAMS)))
        victim = embedded_server.engine_pid
        num_chunks = 0

        def kill_in_the_middle() -> None:
            nonlocal num_chunks
            num_chunks += 1
            if num_chunks == NUM_STREAMS * MAX_TOKENS // 3:
                os.kill(victim, signal.SIGKILL)

        disturbed = await asyncio.gather(
            *(stream_text(client, number, kill_in_the_middle) for number in range(NUM_STREAMS))
        )
    assert embedded_server.engine_pid != victim
    assert disturbed == undisturbed


async def test_requests_sent_during_a_restart_wait_for_the_new_engine(embedded_server: RunningServer) -> None:
    os.kill(embedded_server.engine_pid, signal.SIGKILL)
    async with sdk(embedded_server.url) as client:
        assert await stream_text(client, 1)


def test_sigterm_lets_a_live_stream_end_and_refuses_new_requests(start_server: StartServer) -> None:
    server = start_server()
    body = {"model": "distllm-embedded", "prompt": "Once", "max_tokens": 600, "stream": True, "ignore_eos": True}
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        httpx.Client(base_url=server.url, timeout=60) as other,
    ):
        assert other.get("/health/ready").status_code == 200
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            refused = _await_refusal(other)
            rest = list(lines)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert other.get("/health/ready").status_code == 503
    assert rest[-2] == "data: [DONE]"
    assert server.process.wait(30) == 0


def _await_refusal(client: httpx.Client) -> httpx.Response:
    for _ in range(100):
        response = client.post(
            "/v1/completions", json={"model": "distllm-embedded", "prompt": "x", "max_tokens": 1}
        )
        if response.status_code != 200:
            return response
    raise AssertionError("a draining server goes on taking requests")


def test_no_engine_outlives_a_front_end_that_is_killed(start_server: StartServer) -> None:
    server = start_server()
    engine = psutil.Process(server.engine_pid)
    server.process.kill()
    engine.wait(10)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once_and_cleanly(start_server: StartServer, signal_number: signal.Signals) -> None:
    server = start_server()
    engine = psutil.Process(server.engine_pid)
    server.process.send_signal(signal_number)
    assert server.process.wait(15) == 0
    assert not engine.is_running()
    assert not [line for line in server.log if "Traceback" in line]
