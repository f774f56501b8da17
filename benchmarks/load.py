"""Sends requests at their times and collects the answers. Judges nothing."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.answers import Answer, read_answer
from benchmarks.connection import ConnectionPool, Exchange
from benchmarks.dialects import Dialect
from benchmarks.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server under load."""

    base_url: str
    model: str
    dialect: Dialect
    api_key: str | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Answers in the order of the prompts. `client_cpu_s` is what this process spent while the load ran."""

    answers: list[Answer]
    duration_s: float
    client_cpu_s: float


async def run_load(
    target: Target, prompts: Sequence[Prompt], arrivals_s: Sequence[float], max_concurrency: int | None = None
) -> LoadResult:
    """One request a prompt, sent at its arrival time. Never raises for what the server does.

    With `max_concurrency` a request waits for its turn after its arrival; its times count from the moment it is
    sent, as in `vllm bench serve`.
    """
    pool = ConnectionPool(target.base_url, target.api_key)
    turns = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    bodies = [target.dialect.body(prompt, target.model) for prompt in prompts]
    start_s, start_cpu_s = time.perf_counter(), time.process_time()

    async def send(body: bytes, arrival_s: float) -> Exchange:
        await asyncio.sleep(max(0.0, start_s + arrival_s - time.perf_counter()))
        async with turns:
            return await pool.request("POST", target.dialect.path, body, target.timeout_s)

    try:
        exchanges = await asyncio.gather(*map(send, bodies, arrivals_s))
    finally:
        pool.close()
    duration_s, client_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    answers = [
        read_answer(exchange, len(prompt.token_ids)) for exchange, prompt in zip(exchanges, prompts, strict=True)
    ]
    return LoadResult(answers, duration_s, client_cpu_s)
