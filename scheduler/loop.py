"""The engine's loop: messages in, steps to the executor, one report a step out. Owns the steps under way."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import assert_never

import msgspec

from distllm.engine.interface import Executor, StepInput, StepOutput
from distllm.scheduler.admission import RequestRefused
from distllm.scheduler.messages import (
    Abort,
    Begun,
    EngineRequest,
    FromEngine,
    SequenceOutput,
    Shutdown,
    StartEngine,
    StepReport,
    ToEngine,
)
from distllm.scheduler.scheduler import Scheduler
from distllm.scheduler.step_pace import StepPace


class EngineLoop:
    """Runs in one thread until Shutdown. What the executor raises ends the loop: the process is then replaced.

    `publish` takes reports from this thread. A request that is refused ends there with an error.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        inbox: "SimpleQueue[ToEngine]",
        publish: Callable[[FromEngine], None],
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._inbox = inbox
        self._publish = publish
        self._in_flight: deque[tuple[StepInput, Future[StepOutput]]] = deque()
        self._pace = StepPace()
        self._refusals: list[SequenceOutput] = []
        self._is_open = True
        self._has_news = False  # something happened outside of a step
        self._schedule_s = self._execute_s = self._publish_s = 0.0

    def run(self) -> None:
        while self._is_open:
            self._drain_inbox(block=not (self._in_flight or self._scheduler.has_work))
            self._submit_steps()
            if self._in_flight:
                self._finish_step()
            elif self._has_news:
                self._report([])
        while self._in_flight:
            self._finish_step()

    def _drain_inbox(self, block: bool) -> None:
        """Handle every message that has come; wait for one if `block`."""
        try:
            while self._is_open:
                self._handle(self._inbox.get(block))
                block = False
        except Empty:
            pass

    def _handle(self, message: ToEngine) -> None:
        match message:
            case EngineRequest():
                self._add(message)
            case Abort(request_id=request_id, indices=indices):
                self._scheduler.abort(request_id, indices)
                self._has_news = True
            case Shutdown():
                self._is_open = False
            case StartEngine():
                raise ValueError("the engine has been started already")
            case _:
                assert_never(message)

    def _add(self, request: EngineRequest) -> None:
        try:
            self._scheduler.add(request)
        except RequestRefused as refusal:
            self._refusals.extend(
                SequenceOutput(request.request_id, start.index, [], "error", error=str(refusal))
                for start in request.sequences
            )
            self._has_news = True

    def _submit_steps(self) -> None:
        """Keep as many steps under way as the executor takes."""
        while self._is_open and len(self._in_flight) < self._executor.max_in_flight:
            started = time.perf_counter()
            step = self._scheduler.schedule(self._executor.max_in_flight)
            scheduled = time.perf_counter()
            self._schedule_s += scheduled - started
            if step is None:
                break
            if begun := self._scheduler.take_begun():
                self._publish(Begun(begun))
            if not self._in_flight:
                self._pace.begin(scheduled)
            self._in_flight.append((step, self._executor.submit(step)))
            self._execute_s += time.perf_counter() - scheduled
        assert self._in_flight or not self._is_open or not self._scheduler.has_work, "nothing can run"

    def _finish_step(self) -> None:
        started = time.perf_counter()
        num_under_way = len(self._in_flight)
        step, result = self._in_flight.popleft()
        output = result.result()
        executed = time.perf_counter()
        self._pace.end_step(step, executed, num_under_way)
        outputs = self._scheduler.apply(step, output)
        self._execute_s += executed - started
        self._schedule_s += time.perf_counter() - executed
        if self._executor.max_in_flight > 1:  # what others compute need not wait until this is told
            self._drain_inbox(block=False)
            self._submit_steps()
        self._report(outputs)

    def _report(self, outputs: list[SequenceOutput]) -> None:
        started = time.perf_counter()
        stats = msgspec.structs.replace(
            self._scheduler.stats(),
            schedule_s_total=self._schedule_s,
            execute_s_total=self._execute_s,
            publish_s_total=self._publish_s,
            **self._pace.totals(),
        )
        self._publish(StepReport([*self._refusals, *outputs], stats))
        self._refusals.clear()
        self._has_news = False
        self._publish_s += time.perf_counter() - started
