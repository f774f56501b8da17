"""Several engines of one model behind one front end: started, watched and ended together.

The server is ready as soon as one of them is. A request stays with its engine, which recovers it as ever; only
where that engine is lost for good, or has waited long for machines, another one goes on with it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.engine.pipeline.placement.routing import LatencyTarget
from distllm.scheduler.client import EngineClient, EngineState
from distllm.scheduler.latest import Latest
from distllm.scheduler.messages import EngineRequest, Loading
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull
from distllm.scheduler.stats import EngineStats, merge_stats
from distllm.server.generation_plan import Limits
from distllm.server.routing.measured_stream import MeasuredStream
from distllm.server.routing.probing import Prober
from distllm.server.routing.route import EngineRoute, Size
from distllm.server.routing.router import Router

logger = logging.getLogger("distllm.server")

Member = tuple[EngineRoute, EngineClient]

_STATES: tuple[EngineState, ...] = ("ready", "restarting", "starting", "draining", "failed", "stopped")
"""The state of the first that one of the engines is in is the state of all."""


class HybridEngine:
    """An EngineView of all, the cheapest first. `router` chooses among them by `target`.

    `patience_s` is how long requests wait for machines before another engine gets them.
    """

    def __init__(self, members: Sequence[Member], target: LatencyTarget, patience_s: float) -> None:
        self.router = Router([route for route, _ in members], target)
        self.prober = Prober()
        self._members = tuple(members)
        self._patience_s = patience_s
        self._watches: list[asyncio.Task[None]] = []
        for route, client in self._members:
            client.successor = partial(self._move, route)

    @property
    def state(self) -> EngineState:
        states = {client.state for client in self._clients}
        return next(state for state in _STATES if state in states)

    @property
    def failure(self) -> str | None:
        reasons = {route.name: client.failure for route, client in self._members}
        if None in reasons.values():
            return None
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    @property
    def info(self) -> ExecutorInfo:
        """Of the engine that takes the longest sequences. Raises EngineUnavailable."""
        infos = []
        for client in self._clients:
            with contextlib.suppress(EngineUnavailable):
                infos.append(client.info)
        if not infos:
            raise EngineUnavailable(self.failure or "no engine is ready")
        return max(infos, key=lambda info: Limits.of(info).max_model_len)

    @property
    def stats(self) -> EngineStats:
        return merge_stats([client.stats for client in self._clients])

    @property
    def loading(self) -> Loading | None:
        """Of an engine that loads, as long as none serves."""
        if self.state == "ready":
            return None
        return next((client.loading for client in self._clients if client.loading is not None), None)

    @property
    def cluster(self) -> Latest[ClusterSnapshot | None]:
        """The last engine is the one over machines."""
        return self._clients[-1].cluster

    @property
    def num_restarts(self) -> int:
        return sum(client.num_restarts for client in self._clients)

    @property
    def num_live(self) -> int:
        return sum(client.num_live for client in self._clients)

    @property
    def seconds_since_progress(self) -> float:
        """Of the engine that gets on best: where one does, requests are run."""
        running = [client for client in self._clients if client.state == "ready"]
        return min((client.seconds_since_progress for client in running), default=0.0)

    @property
    def _clients(self) -> tuple[EngineClient, ...]:
        return tuple(client for _, client in self._members)

    async def start(self) -> None:
        """Start all engines and return at once; `wait_ready` waits for the first."""
        for client in self._clients:
            await client.start()
        self._watches = [
            asyncio.create_task(watch(route, client), name=f"watch-{route.name}")
            for route, client in self._members
            for watch in (self._watch_start, self._watch_cluster)
        ]
        for task in self._watches:
            task.add_done_callback(_log_failure)

    async def wait_ready(self) -> None:
        """Until one engine is. Raises EngineUnavailable, with every reason, when none can start."""
        waits = [asyncio.create_task(client.wait_ready()) for client in self._clients]
        try:
            for wait in asyncio.as_completed(waits):
                with contextlib.suppress(EngineUnavailable):
                    await wait
                    return
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        raise EngineUnavailable(self.failure or "no engine could start")

    async def wait_admitting(self) -> None:
        """Until one engine takes requests, or none will."""
        waits = [asyncio.create_task(client.wait_admitting()) for client in self._clients]
        try:
            while self.state == "starting":
                await asyncio.wait([wait for wait in waits if not wait.done()], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the live ones. Returns whether all ended in time."""
        return all(await asyncio.gather(*(client.drain(timeout_s) for client in self._clients)))

    async def stop(self) -> None:
        """End all engines; requests that are still live end with an error."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self.prober.close()
        await asyncio.gather(*(client.stop() for client in self._clients))

    def fail_live(self, reason: str) -> None:
        """End every live request with an error."""
        for client in self._clients:
            client.fail_live(reason)

    async def _watch_start(self, route: EngineRoute, client: EngineClient) -> None:
        """Measure a route once it is ready; say where it will not be."""
        try:
            await client.wait_ready()
        except EngineUnavailable as unavailable:
            logger.warning("the route %s is not there: %s", route.name, unavailable.reason)
        else:
            self.prober.begin(route)

    async def _watch_cluster(self, route: EngineRoute, client: EngineClient) -> None:
        """Measure a new plan; hand requests over where there has been none for long. Reports come every second."""
        epoch, waiting_since_s = None, None
        async for cluster in client.cluster.follow():
            if cluster is None or cluster.waiting is None:
                waiting_since_s = None
            elif waiting_since_s is None:
                waiting_since_s = time.monotonic()
            elif time.monotonic() - waiting_since_s >= self._patience_s:
                client.hand_over(partial(self._move, route))
            if cluster is not None and cluster.is_serving and cluster.epoch != epoch:
                if epoch is not None:
                    route.forget_pace()
                epoch = cluster.epoch
                self.prober.begin(route)

    def _move(self, source: EngineRoute, request: EngineRequest) -> bool:
        """Have another engine go on with a request that `source` gives up. Whether there is one that takes it."""
        stream = next((stream for stream in source.streams if stream.request_id == request.request_id), None)
        if stream is None or stream.is_pinned:
            return False
        for route, _ in self._members:
            if route is not source and route.refusal(_size_of(request)) is None:
                is_moved = _go_on(stream, source, route, request)
                if is_moved:
                    self.router.on_move(source.name, route.name)
                return is_moved
        return False


def _log_failure(task: "asyncio.Task[None]") -> None:
    """The engines serve on, and requests stay where they are."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s has ended", task.get_name(), exc_info=error)


def _go_on(stream: MeasuredStream, source: EngineRoute, route: EngineRoute, request: EngineRequest) -> bool:
    """The request gets another id: what its former engine may still say of it is not said of this one."""
    moved = msgspec.structs.replace(request, request_id=f"{request.request_id}+")
    try:
        inner = route.engine.submit(moved)
    except (EngineDraining, EngineUnavailable, QueueFull):
        return False
    if source.numerics != route.numerics:
        logger.warning(
            "%s goes on from %s to %s, where sums have another order: its tokens are the same up to rounding",
            request.request_id,
            source.name,
            route.name,
        )
    source.streams.pop(stream, None)
    stream.go_on(route, moved.request_id, inner)
    route.streams[stream] = None
    return True


def _size_of(request: EngineRequest) -> Size:
    num_new = request.params.max_tokens or 0
    num_prompt = len(request.prompt_ids)
    return Size(num_prompt, num_new, num_prompt + num_new, len(request.sequences))
