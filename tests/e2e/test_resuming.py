"""A server that is killed and started again with the same --state goes on with the streams that may be resumed."""

import asyncio
import json
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from distllm.clients import AsyncClient, RetryPolicy
from distllm.clients.options import CompletionOptions
from tests.conftest import RunningServer, StartServer

MODEL = "distllm-embedded"
RESUMABLE = {"x-resumable": "true"}
NUM_TOKENS = 400
LONG = {"model": MODEL, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
STORY = {
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "stream_options": {"include_usage": True},
}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("completions", {"prompt": "Once upon a time", "temperature": 0}),
    "seeded": ("completions", {"prompt": "Once upon a time", "temperature": 1.0, "seed": 7}),
    "choices": ("completions", {"prompt": "The old king", "n": 3, "seed": 5, "logprobs": 2}),
    "prompts": ("completions", {"prompt": ["A dog", "A cat"], "seed": 3, "echo": True, "logprobs": 0}),
    "stopped": ("completions", {"prompt": "One day", "n": 2, "seed": 11, "stop": [" the", "qqq"]}),
    "chat": ("chat/completions", STORY | {"temperature": 0}),
    "chat_choices": ("chat/completions", STORY | {"n": 2, "seed": 9, "logprobs": True, "top_logprobs": 3}),
}


@dataclass
class Received:
    """What a client has of a stream, over all its connections."""

    ids: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)

    async def read(self, response: httpx.Response, num_events: int | None = None) -> None:
        """Up to so many events in all, or to the end."""
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                self.ids.append(line.removeprefix("id: "))
            if line.startswith("data: "):
                self.data.append(line.removeprefix("data: "))
            if len(self.data) == num_events:
                return

    def by_choice(self) -> dict[int, list[Any]]:
        """The events of each choice in their order, without what no two requests share."""
        found: dict[int, list[Any]] = {}
        for data in self.data:
            chunk = {} if data == "[DONE]" else json.loads(data)
            assert "error" not in chunk, chunk
            index = chunk["choices"][0]["index"] if chunk.get("choices") else 0
            found.setdefault(index, []).append(chunk | {"id": "", "created": 0})
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)


def steps_of(metrics: str) -> float:
    """How many steps the engine has made, as /metrics tells it."""
    return sum(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("distllm_engine_steps_total")
    )


async def undisturbed(client: httpx.AsyncClient, name: str) -> Received:
    path, fields = ASKED[name]
    received = Received()
    async with client.stream("POST", f"/v1/{path}", json=LONG | fields) as response:
        await received.read(response)
    assert received.ids == []
    return received


async def read_until(client: httpx.AsyncClient, name: str, num_events: int, are_there: asyncio.Barrier) -> Received:
    """Begin a stream, and let go of it once all streams have so many events."""
    path, fields = ASKED[name]
    received = Received()
    async with client.stream("POST", f"/v1/{path}", json=LONG | fields, headers=RESUMABLE) as response:
        await received.read(response, num_events)
        await are_there.wait()
    return received


async def resume(client: httpx.AsyncClient, received: Received) -> None:
    last_id = received.ids[-1]
    headers = {"Last-Event-ID": last_id}
    url = f"/v1/streams/{last_id.rpartition('-')[0]}"
    async with client.stream("GET", url, headers=headers) as response:
        await received.read(response)


async def test_streams_outlive_sigkill_of_the_server(start_server: StartServer, tmp_path: Path) -> None:
    flags = ("--state", tmp_path / "state", "--port", str(free_port()))
    server = start_server(*flags)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        expected = dict(
            zip(ASKED, await asyncio.gather(*(undisturbed(client, name) for name in ASKED)), strict=True)
        )
        are_there = asyncio.Barrier(len(ASKED) + 1)
        reads = [
            asyncio.create_task(read_until(client, name, 5 + number, are_there))
            for number, name in enumerate(ASKED)
        ]
        await are_there.wait()
        kill(server)
        received = dict(zip(ASKED, await asyncio.gather(*reads), strict=True))
    again = start_server(*flags)
    assert again.url == server.url
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await asyncio.gather(*(resume(client, each) for each in received.values()))
        metrics = (await client.get("/metrics")).text
    for name in ASKED:
        assert received[name].by_choice() == expected[name].by_choice(), name
        assert len(set(received[name].ids)) == len(received[name].data)
    assert steps_of(metrics) > NUM_TOKENS / 4, "most was computed before the server was killed"
    assert f"distllm_streams_restored_total {len(ASKED)}.0" in metrics
    assert f"distllm_streams_resumed_total {len(ASKED)}.0" in metrics


async def test_our_client_reads_on_while_the_server_is_killed_and_started_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    flags = ("--state", tmp_path / "state", "--port", str(free_port()))
    server = start_server(*flags)
    options: CompletionOptions = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 21}
    async with AsyncClient(server.url, retries=RetryPolicy(resume_within_s=100)) as client:
        expected = (await client.complete("The sea", **options)).text
        stream = await client.complete_stream("The sea", **options)
        texts = [(await anext(stream)).text for _ in range(20)]
        kill(server)
        await asyncio.to_thread(start_server, *flags)
        texts += [chunk.text async for chunk in stream]
    assert "".join(texts) == expected


async def test_a_server_that_is_told_to_end_leaves_its_streams_to_the_next(
    start_server: StartServer, tmp_path: Path
) -> None:
    flags = ("--state", tmp_path / "state", "--port", str(free_port()), "--drain-s", "0")
    server = start_server(*flags)
    options: CompletionOptions = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}
    async with AsyncClient(server.url, retries=RetryPolicy(resume_within_s=100)) as client:
        expected = (await client.complete("The sea", **options)).text
        stream = await client.complete_stream("The sea", **options)
        texts = [(await anext(stream)).text]
        assert await asyncio.to_thread(server.terminate) == 0
        await asyncio.to_thread(start_server, *flags)
        texts += [chunk.text async for chunk in stream]
    assert "".join(texts) == expected
