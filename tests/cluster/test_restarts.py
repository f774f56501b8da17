"""The whole server of a cluster is killed in the middle of its streams and started again: none of them is lost."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, free_port, running_cluster
from benchmarks.watched_streams import Ask
from distllm.clients import AsyncClient, RetryPolicy
from distllm.clients.options import CompletionOptions
from tests.cluster.conftest import NAMES, NUM_STAGES, asks

NUM_STREAMS = 6
NUM_TOKENS = 160
RESUMES = RetryPolicy(resume_within_s=100)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One of its own, whose server is found at the same port when it has been started again."""
    port = ("--port", str(free_port()))
    with running_cluster(tmp_path, num_stages=NUM_STAGES, arguments=(*ONE_NUMERICS, *port)) as cluster:
        for name in NAMES[:NUM_STAGES]:
            cluster.start_peer(name)
        cluster.wait_until_ready()
        yield cluster


async def test_streams_outlive_sigkill_of_the_whole_server(cluster: Cluster) -> None:
    have_begun = asyncio.Barrier(NUM_STREAMS + 1)
    async with AsyncClient(cluster.base_url, retries=RESUMES) as client:

        async def undisturbed(ask: Ask) -> str:
            return (await client.complete(ask.prompt, **options(ask))).text

        async def disturbed(ask: Ask) -> str:
            stream = await client.complete_stream(ask.prompt, **options(ask))
            texts = [(await anext(stream)).text for _ in range(10 + 5 * ask.seed)]
            await have_begun.wait()
            return "".join([*texts, *[chunk.text async for chunk in stream]])

        asked = asks(NUM_STREAMS, NUM_TOKENS)
        expected = await asyncio.gather(*map(undisturbed, asked))
        reads = [asyncio.create_task(disturbed(ask)) for ask in asked]
        await have_begun.wait()
        await asyncio.to_thread(cluster.kill_server)
        cluster.start_server_again()
        assert await asyncio.gather(*reads) == expected
    assert len(set(expected)) == NUM_STREAMS
    assert num_steps(cluster) > NUM_TOKENS / 4, "most was computed before the server was killed"


def num_steps(cluster: Cluster) -> float:
    """Of the coordinator of now."""
    lines = httpx.get(f"{cluster.base_url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("distllm_engine_steps_total"))


def options(ask: Ask) -> CompletionOptions:
    return {"max_tokens": ask.num_tokens, "temperature": ask.temperature, "seed": ask.seed, "ignore_eos": True}
