"""The front end's side of the engine: submits requests, and keeps them alive over the death of an engine.

Owns the record of every live request and the engine process. Knows nothing of text or HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, assert_never

import msgspec

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.scheduler.channel import ChannelClosed
from distllm.scheduler.latest import Latest
from distllm.scheduler.live_request import LiveRequest, RequestStream
from distllm.scheduler.messages import (
    Abort,
    Begun,
    ClusterReport,
    EngineRequest,
    Loading,
    Ready,
    SequenceOutput,
    StartEngine,
    StartFailed,
    StepReport,
)
from distllm.scheduler.probation import Probation
from distllm.scheduler.refusals import EngineDraining, EngineUnavailable, QueueFull
from distllm.scheduler.spawn import ENGINE_COMMAND, CannotSpawn, EngineProcess
from distllm.scheduler.stats import EngineStats
from distllm.scheduler.watchdog import kill_when_hung, kill_when_start_hangs

logger = logging.getLogger("distllm.scheduler")

EngineState = Literal["starting", "ready", "restarting", "draining", "failed", "stopped"]

MAX_DEATHS_WITHOUT_PROGRESS = 8
STEPS_OF_PROGRESS = 16
"""An engine that has finished so many steps was no failure, whatever ends it."""
_MAX_BACKOFF_S = 5.0
_SHUTDOWN_GRACE_S = 5.0


class EngineClient:
    """Starts the engine, feeds it and restarts it. All methods belong to one event loop."""

    def __init__(
        self,
        start: StartEngine,
        on_loading: Callable[[Loading], None] = lambda _: None,
        command: Sequence[str] = ENGINE_COMMAND,
        step_timeout_s: float = 600.0,
    ) -> None:
        self._start_message = start
        self._on_loading = on_loading
        self._command = command
        self._step_timeout_s = step_timeout_s
        self._max_live = start.scheduler.max_num_seqs + start.scheduler.max_waiting
        self._live: dict[str, LiveRequest] = {}
        self._released: set[str] = set()  # requests that the present engine has been given
        self._begun: set[str] = set()  # those of them that have been in a step
        self._probation = Probation()
        self._process: EngineProcess | None = None
        self._serving: EngineProcess | None = None  # the same, once its model is loaded
        self._supervisor: asyncio.Task[None] | None = None
        self._state: EngineState = "stopped"
        self._settled = asyncio.Event()  # ready, failed or stopped: no longer starting
        self._admitting = asyncio.Event()  # the same, or draining
        self._idle = asyncio.Event()
        self._idle.set()
        self._info: ExecutorInfo | None = None
        self._failure = "the engine has not been started"
        self._deaths_without_progress = 0
        self._num_steps = 0  # of the present engine
        self._last_step_at = time.monotonic()
        self._heard_s = self._last_step_at  # of an engine that loads
        self._smoothed_request_s = 1.0
        self.stats = EngineStats()
        self.loading: Loading | None = None
        self.cluster: Latest[ClusterSnapshot | None] = Latest(None)
        self.num_restarts = 0
        self.successor: Callable[[EngineRequest], bool] = lambda _: False
        """Asked of every live request when this engine is lost for good; one that it takes goes on elsewhere."""

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def failure(self) -> str | None:
        """Why there is no engine that runs requests, None where there is."""
        return None if self._state in ("ready", "draining") and self._info is not None else self._failure

    @property
    def info(self) -> ExecutorInfo:
        """Raises EngineUnavailable before the first engine is ready."""
        if self._info is None:
            raise EngineUnavailable(self._failure)
        return self._info

    @property
    def engine_pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def seconds_since_progress(self) -> float:
        """Seconds for which an engine has had work without finishing a step; 0 when there is none.

        An engine that waits for machines does not hang: its clock stands still.
        """
        return time.monotonic() - self._last_step_at if self._live and self._serving else 0.0

    def submit(self, request: EngineRequest) -> RequestStream:
        """Queue a request; the last that is taken may go over the limit. Raises QueueFull, EngineDraining or
        EngineUnavailable."""
        if self._state == "draining":
            raise EngineDraining
        if self._state not in ("ready", "restarting"):
            raise EngineUnavailable(self._failure)
        num_sequences = sum(len(live.request.sequences) for live in self._live.values())
        if num_sequences >= self._max_live:
            raise QueueFull(num_sequences, max(1.0, self._smoothed_request_s))
        if not self._live:
            self._last_step_at = time.monotonic()
        live = LiveRequest(request)
        self._live[request.request_id] = live
        self._idle.clear()
        if self._probation.admit(live.request_id):
            self._release(live)
        return RequestStream(live, lambda indices: self._abort(live, indices))

    async def start(self) -> None:
        """Start the engine and return at once; `wait_ready` waits for it."""
        self._state, self._failure = "starting", "the model is still being loaded"
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def wait_ready(self) -> None:
        """Raises EngineUnavailable when the engine cannot start."""
        await self._settled.wait()
        if self._state in ("failed", "stopped"):
            raise EngineUnavailable(self._failure)

    async def wait_admitting(self) -> None:
        """Return as soon as `submit` takes requests, or never will."""
        await self._admitting.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the live ones. Returns whether all ended in time."""
        if self._state in ("ready", "restarting", "starting"):
            self._state = "draining"
        self._admitting.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._live

    async def stop(self) -> None:
        """End the engine; requests that are still live end with an error."""
        self._state, self._failure = "stopped", "the server has stopped"
        self._settled.set()
        self._admitting.set()
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self.fail_live(self._failure)
        if self._process is not None:
            await self._process.stop(_SHUTDOWN_GRACE_S)
            self._process = None
        self.cluster.close()

    def _release(self, live: LiveRequest) -> None:
        """Give a request to the engine, if there is one."""
        if self._serving is not None:
            self._released.add(live.request_id)
            self._serving.send(live.resumption())

    def _release_held(self) -> None:
        """Give the engine those requests whose turn has come since its predecessor died."""
        if self._serving is not None:
            for request_id in self._probation.release():
                self._release(self._live[request_id])

    def _abort(self, live: LiveRequest, indices: list[int] | None) -> None:
        if self._serving is not None and live.request_id in self._released:
            self._serving.send(Abort(live.request_id, indices))
        if live.is_finished:
            self._forget(live)

    def _forget(self, live: LiveRequest) -> None:
        if self._live.pop(live.request_id, None) is None:
            return
        self._released.discard(live.request_id)
        self._begun.discard(live.request_id)
        self._probation.forget(live.request_id)
        self._release_held()
        if not self._live:
            self._idle.set()

    def hand_over(self, successor: Callable[[EngineRequest], bool]) -> None:
        """Offer every live request, with the tokens it has. The streams of those that `successor` takes end here,
        without a terminal output."""
        for live in list(self._live.values()):
            if successor(live.resumption()):
                live.drop()
                self._abort(live, None)

    def fail_live(self, reason: str) -> None:
        """End every live request with an error."""
        for live in list(self._live.values()):
            live.fail(reason)
            self._forget(live)

    async def _supervise(self) -> None:
        """Keep one engine running until it cannot be started or keeps dying."""
        while True:
            try:
                self._process = await EngineProcess.spawn(self._next_start(), self._command)
                end, has_hung = await self._serve_with(self._process)
            except CannotSpawn as error:
                end, has_hung = str(error), False
            self._process = self._serving = None
            if self._state == "failed" or not self._plan_restart(end, has_hung):
                return
            await asyncio.sleep(min(_MAX_BACKOFF_S, 0.1 * 2 ** (self._deaths_without_progress - 1)))

    async def _serve_with(self, process: EngineProcess) -> tuple[str, bool]:
        """Receive from an engine until it has ended: how it did, and whether because it hung while it started."""
        self._heard_s = time.monotonic()
        in_work = asyncio.create_task(
            kill_when_hung(process, lambda: self.seconds_since_progress, self._step_timeout_s)
        )
        in_start = asyncio.create_task(
            kill_when_start_hangs(
                process, lambda: self._serving is None, lambda: self._heard_s, self._step_timeout_s
            )
        )
        try:
            with contextlib.suppress(ChannelClosed):
                await self._receive_forever(process)
        finally:
            in_work.cancel()
            reason = in_start.result() if in_start.done() else None
            in_start.cancel()
        end = await process.describe_end()
        return reason or end, reason is not None

    def _next_start(self) -> StartEngine:
        """A successor sums in the order of the first engine, so that sequences go on with the same bits."""
        if self._info is None:
            return self._start_message
        engine = replace(self._start_message.engine, numerics=self._info.numerics)
        return msgspec.structs.replace(self._start_message, engine=engine)

    async def _receive_forever(self, process: EngineProcess) -> None:
        """Raises ChannelClosed when the engine has gone; returns when it reported that it cannot start."""
        while True:
            message = await process.receive()
            match message:
                case Loading():
                    self._heard_s = time.monotonic()
                    self.loading = None if self._serving else message  # peers of a cluster load at any time
                    self._on_loading(message)
                case Ready(info=info):
                    self._serving = process
                    self._on_ready(info)
                case StartFailed(reason=reason):
                    self._fail(reason)
                    return
                case Begun(request_ids=request_ids):
                    self._begun.update(self._released.intersection(request_ids))
                case StepReport(outputs=outputs, stats=stats):
                    self._on_step(outputs, stats)
                case ClusterReport(cluster=cluster):
                    self._on_cluster(cluster)
                case _:
                    assert_never(message)

    def _on_ready(self, info: ExecutorInfo) -> None:
        self._info = info
        self.loading = None
        self._last_step_at = time.monotonic()
        if self._state != "draining":
            self._state = "ready"
        self._settled.set()
        self._admitting.set()
        for live in list(self._live.values()):
            if not self._probation.holds(live.request_id):
                self._release(live)
        self._release_held()

    def _on_step(self, outputs: list[SequenceOutput], stats: EngineStats) -> None:
        self.stats = stats
        self._last_step_at = time.monotonic()
        self._num_steps += 1
        if self._num_steps >= STEPS_OF_PROGRESS:
            self._deaths_without_progress = 0
        self._probation.passed_step({output.request_id for output in outputs})
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None:
                continue
            live.accept(output)
            if live.is_finished:
                self._note_duration(live)
                self._forget(live)
        self._release_held()

    def _on_cluster(self, cluster: ClusterSnapshot) -> None:
        if cluster.waiting is not None:
            self._last_step_at = time.monotonic()
        self.cluster.replace(cluster)

    def _note_duration(self, live: LiveRequest) -> None:
        """Exponentially smoothed seconds a request takes, for Retry-After."""
        duration_s = max(0.0, time.time() - live.request.arrival_s)
        self._smoothed_request_s += 0.1 * (min(duration_s, 600.0) - self._smoothed_request_s)

    def _plan_restart(self, end: str, has_hung: bool) -> bool:
        """After a death: single out a culprit, and say whether another engine shall be started.

        One that dies in the first start would do so again; one that hung may not.
        """
        if self._state == "starting" and not has_hung:
            self._fail(f"the engine ended ({end}) while it loaded the model; is there memory enough for it?")
            return False
        self._deaths_without_progress += 1
        self.num_restarts += 1
        self._num_steps = 0
        culprit = self._probation.engine_died(self._begun, self._live)
        self._released.clear()
        self._begun.clear()
        self.stats = EngineStats()
        self.cluster.replace(None)
        logger.error("the engine ended (%s) with %d live requests", end, len(self._live))
        if culprit is not None and (live := self._live.get(culprit)):
            live.fail("this request ended the engine twice; it is not tried again")
            self._forget(live)
        if self._deaths_without_progress >= MAX_DEATHS_WITHOUT_PROGRESS:
            self._fail(f"the engine ended {self._deaths_without_progress} times in a row ({end})")
            return False
        if self._state == "ready":
            self._state, self._failure = "restarting", "the engine is being restarted"
        return True

    def _fail(self, reason: str) -> None:
        if self._state != "starting":  # else `wait_ready` raises it
            logger.error("%s", reason)
        self._state, self._failure = "failed", reason
        self.hand_over(self.successor)
        self.fail_live(reason)
        self._settled.set()
        self._admitting.set()
