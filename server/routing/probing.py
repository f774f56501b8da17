"""Measures a route by short requests of its own: when its engine is ready, and when its figures have aged.

Owns the tasks in which that happens.
"""

import asyncio
import logging
import random
import time
import uuid

from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.messages import EngineRequest, SequenceStart
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull
from distllm.server.routing.route import EngineRoute

logger = logging.getLogger("distllm.server")

_PROMPT_TOKENS = 128
_NEW_TOKENS = 12
_TOGETHER = 8
"""Sequences that show what more of them cost."""
_LIFE_S = 60.0
"""How long figures of a route that nothing runs on are believed."""
_TIMEOUT_S = 60.0


class Prober:
    """One probe a route at a time, and only of routes on which nothing runs."""

    def __init__(self) -> None:
        self._probes: dict[EngineRoute, asyncio.Task[None]] = {}
        self._probed_s: dict[EngineRoute, float] = {}

    def refresh(self, route: EngineRoute) -> None:
        """Begin a probe where the figures are old, and the route is idle."""
        if time.monotonic() - self._probed_s.get(route, -_LIFE_S) >= _LIFE_S:
            self.begin(route)

    def begin(self, route: EngineRoute) -> None:
        """Begin a probe of a route that is idle and can run it."""
        if route in self._probes or not _can_probe(route):
            return
        self._probed_s[route] = time.monotonic()
        task = asyncio.create_task(_probe(route), name=f"probe-{route.name}")
        self._probes[route] = task
        task.add_done_callback(lambda _: self._probes.pop(route, None))

    async def measured(self, route: EngineRoute) -> None:
        """Probe a route that was never measured, if that can be now."""
        if (task := self._probes.get(route)) is not None:
            await asyncio.wait([task])
        elif not route.pace.is_measured and _can_probe(route):
            await _probe(route)

    async def close(self) -> None:
        """End all probes."""
        tasks = list(self._probes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _can_probe(route: EngineRoute) -> bool:
    """Whether it can run a probe, and nothing else runs."""
    return not route.streams and route.unavailable is None and route.state == "ready"


async def _probe(route: EngineRoute) -> None:
    """One sequence, then several that run together. What they take, their streams note.

    What the first request of an engine takes says little of the next: it is forgotten.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            if not route.pace.is_measured:
                await _run(route, 1)
                route.forget_pace()
            await _run(route, 1)
            if _can_probe(route):
                await _run(route, min(_TOGETHER, route.max_running))
    except (EngineDraining, EngineUnavailable, QueueFull, TimeoutError) as error:
        logger.info("%s could not be measured: %s", route.name, error)


async def _run(route: EngineRoute, num_sequences: int) -> None:
    """Of random tokens, so that no part of the prompt is cached."""
    info = route.info
    num_prompt = min(_PROMPT_TOKENS, route.max_len() // 2)
    request = EngineRequest(
        request_id=f"probe-{uuid.uuid4().hex}",
        prompt_ids=[random.randrange(info.vocab_size) for _ in range(num_prompt)],
        params=SamplingParams(max_tokens=min(_NEW_TOKENS, num_prompt), temperature=0.0, ignore_eos=True),
        seed=0,
        sequences=[SequenceStart(index) for index in range(num_sequences)],
        arrival_s=time.time(),
    )
    async with route.submit(request, is_pinned=True) as stream:
        async for _ in stream:
            pass
