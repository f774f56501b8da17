"""Requests that come before peers do."""

import asyncio
from pathlib import Path

import openai

from benchmarks.cluster import LOOPBACK, free_port, running_cluster
from tests.cluster.conftest import MODEL


async def test_a_request_waits_for_the_first_peers(tmp_path: Path) -> None:
    port = free_port()
    with running_cluster(tmp_path, arguments=["--port", str(port)]) as cluster:
        cluster.wait_until(lambda: "peers may join" in cluster.log(), "the coordinator listens")
        async with openai.AsyncOpenAI(base_url=f"http://{LOOPBACK}:{port}/v1", api_key="none") as client:
            asking = asyncio.create_task(
                client.completions.create(model=MODEL, prompt="Once", max_tokens=8, stream=True)
            )
            done, _ = await asyncio.wait([asking], timeout=1.0)
            assert not done
            for name in ("ann", "bob"):
                await asyncio.to_thread(cluster.start_peer, name)
            chunks = [chunk async for chunk in await asking]
        assert chunks[-1].choices[0].finish_reason == "length"
