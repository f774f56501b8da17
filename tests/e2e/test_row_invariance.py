"""A token is a function of its prefix, bit for bit, through the whole server: compared as text and as logprobs."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer, StartServer

NUM_REQUESTS = 32
BODY: dict[str, Any] = {"model": "distllm-embedded", "max_tokens": 40, "logprobs": 3, "ignore_eos": True}


def bodies() -> list[dict[str, Any]]:
    """Prompts of 1 to 200 tokens, some with a common beginning; greedy and sampled ones."""
    story = "Once upon a time there was a small dog who lived by the river and liked to run in the rain. "
    return [
        BODY
        | {
            "prompt": story * (number % 7) + f"The {number}. friend came and said",
            "temperature": 0.0 if number % 3 == 0 else 0.9,
            "top_p": 0.95 if number % 2 else 1.0,
            "seed": number,
        }
        for number in range(NUM_REQUESTS)
    ]


async def answer(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return {"text": choice["text"], "logprobs": choice["logprobs"]}


async def one_by_one(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return [await answer(client, body) for body in bodies()]


async def all_at_once(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(answer(client, body) for body in bodies()))


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.soak)])
async def test_alone_in_a_batch_chunked_and_preempted_the_bits_are_the_same(
    start_server: StartServer, dtype: str
) -> None:
    roomy = start_server("--dtype", dtype, "--no-prefix-caching")
    tight = start_server(
        "--dtype", dtype, "--max-num-batched-tokens", "37", "--max-num-seqs", "32", "--max-model-len", "512",
        "--kv-cache-memory", "0.003" if dtype == "bfloat16" else "0.006",
    )  # fmt: skip
    alone = await one_by_one(roomy.url)
    assert await all_at_once(roomy.url) == alone
    assert await all_at_once(tight.url) == alone
    assert metric(tight.url, "vllm:num_preemptions_total") > 0
    assert await all_at_once(tight.url) == alone  # now with prefix hits
    assert metric(tight.url, "vllm:prefix_cache_hits_total") > 0


async def test_the_choices_of_one_request_are_those_of_a_request_each(embedded_server: RunningServer) -> None:
    """n=3 in one request shares the prompt's KV; a repeat of it gives the same three."""
    body = BODY | {"prompt": "Once upon a time", "temperature": 1.0, "seed": 5, "n": 3}
    async with httpx.AsyncClient(base_url=embedded_server.url, timeout=60) as client:
        first, second = [(await client.post("/v1/completions", json=body)).json() for _ in range(2)]
        alone = await answer(client, {key: value for key, value in body.items() if key != "n"})
    assert first["choices"] == second["choices"]
    assert len({choice["text"] for choice in first["choices"]}) == 3
    assert first["choices"][0]["text"] == alone["text"]
    assert first["choices"][0]["logprobs"] == alone["logprobs"]
