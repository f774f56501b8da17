"""Messages in, reports out."""

from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.interface import StepInput, StepOutput
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.loop import EngineLoop
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
from tests.scheduler.harness import make_request, undisturbed
from tests.scheduler.slot_executor import SlotExecutor, executor_info


class Engine:
    """A loop whose reports are kept. `on_report` may send more messages, `until_idle` then ends it."""

    def __init__(self, executor: SlotExecutor | None = None) -> None:
        self.executor = executor or SlotExecutor(executor_info(64, 4, 200))
        self.inbox: SimpleQueue[ToEngine] = SimpleQueue()
        self.reports: list[StepReport] = []
        self.begun: list[list[str]] = []
        scheduler = Scheduler(SchedulerConfig(), self.executor.info)
        self.loop = EngineLoop(scheduler, self.executor, self.inbox, self.publish)

    def publish(self, message: FromEngine) -> None:
        if isinstance(message, Begun):
            self.begun.append(message.request_ids)
            return
        assert isinstance(message, StepReport)
        self.reports.append(message)
        self.on_report(message)
        if message.stats.num_running + message.stats.num_waiting == 0:
            self.inbox.put(Shutdown())

    def on_report(self, report: StepReport) -> None:
        pass

    def run(self, *messages: ToEngine) -> None:
        """Handle the messages, until nothing runs or waits."""
        for message in messages:
            self.inbox.put(message)
        self.loop.run()

    @property
    def outputs(self) -> list[SequenceOutput]:
        return [output for report in self.reports for output in report.outputs]

    def tokens_of(self, request: EngineRequest) -> list[int]:
        return [i for output in self.outputs if output.request_id == request.request_id for i in output.token_ids]


@pytest.mark.parametrize("max_in_flight", [1, 2, 3])
def test_requests_are_answered_with_one_report_a_step(max_in_flight: int) -> None:
    engine = Engine(SlotExecutor(executor_info(64, 4, 200), max_in_flight))
    requests = [make_request(name, range(i, 9), max_tokens=5) for i, name in enumerate("abc")]
    engine.run(*requests)
    for request in requests:
        assert engine.tokens_of(request) == undisturbed(request, 0, 200)[0]
    assert len(engine.reports) == len(engine.executor.steps)
    assert engine.reports[-1].stats.steps_total == len(engine.executor.steps)


def test_requests_are_named_once_and_before_they_are_in_a_step() -> None:
    engine = Engine()
    steps_before: list[int] = []
    publish = engine.publish

    def spy(message: FromEngine) -> None:
        if isinstance(message, Begun):
            steps_before.append(len(engine.executor.steps))
        publish(message)

    engine.loop = EngineLoop(Scheduler(SchedulerConfig(), engine.executor.info), engine.executor, engine.inbox, spy)
    engine.run(make_request("a", [1, 2], max_tokens=3), make_request("b", [3], n=2, max_tokens=2))
    assert engine.begun == [["a", "b"]]
    assert steps_before == [0]


def test_a_step_without_new_tokens_is_reported_too() -> None:
    engine = Engine()
    engine.run(make_request("a", [i % 90 for i in range(150)], max_tokens=1))
    assert len(engine.reports) == 1
    engine = Engine()
    engine.loop = EngineLoop(
        Scheduler(SchedulerConfig(max_num_batched_tokens=50), engine.executor.info),
        engine.executor,
        engine.inbox,
        engine.publish,
    )
    engine.run(make_request("a", [i % 90 for i in range(150)], max_tokens=1))
    assert [len(report.outputs) for report in engine.reports] == [0, 0, 1]


def test_a_refused_request_ends_every_sequence_with_the_reason() -> None:
    engine = Engine()
    engine.run(make_request("a", [], n=2))
    assert [(output.index, output.finish_reason) for output in engine.outputs] == [(0, "error"), (1, "error")]
    assert engine.outputs[0].error == "the prompt has no tokens; it must have at least one"


def test_a_refusal_beside_running_requests_is_reported_once() -> None:
    engine = Engine()
    request = make_request("a", [1, 2], max_tokens=3)
    engine.run(request, make_request("bad", []))
    assert [output.request_id for output in engine.outputs].count("bad") == 1
    assert engine.tokens_of(request) == undisturbed(request, 0, 200)[0]


class AbortingEngine(Engine):
    """Aborts "a" at its second token."""

    def on_report(self, report: StepReport) -> None:
        if len([output for output in self.outputs if output.request_id == "a"]) == 2:
            self.inbox.put(Abort("a"))


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_after_an_abort_no_output_follows(max_in_flight: int) -> None:
    engine = AbortingEngine(SlotExecutor(executor_info(64, 4, 200), max_in_flight))
    other = make_request("b", [7, 8], max_tokens=6)
    engine.run(make_request("a", [1, 2], max_tokens=50), other)
    assert len([output for output in engine.outputs if output.request_id == "a"]) == 2
    assert engine.tokens_of(other) == undisturbed(other, 0, 200)[0]


def test_an_abort_that_leaves_nothing_running_is_reported_so_that_gauges_fall() -> None:
    engine = AbortingEngine()
    engine.run(make_request("a", [1, 2], max_tokens=50))
    last = engine.reports[-1]
    assert last.outputs == []
    assert (last.stats.num_running, last.stats.kv_cache_usage) == (0, 0.0)


def test_the_loop_waits_for_messages_without_reporting() -> None:
    engine = Engine()
    thread = Thread(target=engine.run)
    thread.start()
    assert engine.reports == []
    engine.inbox.put(make_request("a", [1], max_tokens=1))
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(engine.reports) == 1


def test_an_idle_loop_never_asks_for_messages_without_waiting() -> None:
    class CountingInbox(SimpleQueue[ToEngine]):
        num_empty_looks = 0

        def get(self, block: bool = True, timeout: float | None = None) -> ToEngine:
            if not block and self.empty():
                self.num_empty_looks += 1
            return super().get(block, timeout)

    engine = Engine()
    engine.inbox = inbox = CountingInbox()
    engine.loop = EngineLoop(
        Scheduler(SchedulerConfig(), engine.executor.info), engine.executor, inbox, engine.publish
    )
    thread = Thread(target=engine.run)
    thread.start()
    thread.join(timeout=0.05)
    assert inbox.num_empty_looks == 0
    inbox.put(Shutdown())
    thread.join(timeout=30)
    assert not thread.is_alive()


class ShuttingEngine(Engine):
    """Asks for the end after the first report, with steps under way: one has begun in the place of the first."""

    def on_report(self, report: StepReport) -> None:
        self.inbox.put(Shutdown())


def test_shutdown_reports_the_steps_under_way_and_starts_no_more() -> None:
    engine = ShuttingEngine(SlotExecutor(executor_info(64, 4, 200), max_in_flight=3))
    engine.loop = EngineLoop(
        Scheduler(SchedulerConfig(max_num_batched_tokens=4), engine.executor.info),
        engine.executor,
        engine.inbox,
        engine.publish,
    )
    engine.run(make_request("a", range(60), max_tokens=9))
    assert len(engine.executor.steps) == 4
    assert len(engine.reports) == 4


class BrokenExecutor(SlotExecutor):
    def submit(self, step: StepInput) -> "Future[StepOutput]":
        future: Future[StepOutput] = Future()
        future.set_exception(RuntimeError("the device is lost"))
        return future


def test_what_the_executor_raises_ends_the_loop() -> None:
    engine = Engine(BrokenExecutor(executor_info(64, 4, 200)))
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.run(make_request("a", [1]))


def test_a_second_start_is_an_error() -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="started already"):
        engine.run(StartEngine(EngineConfig(model="m"), SchedulerConfig()))


def test_reports_split_the_busy_time() -> None:
    engine = Engine()
    engine.run(make_request("a", [1], max_tokens=3))
    stats = engine.reports[-1].stats
    assert min(stats.schedule_s_total, stats.execute_s_total, stats.publish_s_total) > 0.0
    assert [report.stats.schedule_s_total for report in engine.reports] == sorted(
        report.stats.schedule_s_total for report in engine.reports
    )
