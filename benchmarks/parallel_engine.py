"""One engine of the comparison in `benchmarks.tensor_parallel`: decodes some streams and says where the time went.

A program of its own, for a process can be a rank only once: `python -m benchmarks.parallel_engine` reads a Job as
JSON and prints a Timing as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.deepspeed_group import DeepSpeedGroup
from distllm.engine.factory import build_executor
from distllm.engine.interface import Executor
from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import EngineRequest, SequenceStart
from distllm.scheduler.scheduler import Scheduler

PROMPT_LEN = 16
NUM_WARM_UP_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`num_threads` are those of each rank."""

    model: str
    num_ranks: int
    num_threads: int
    num_streams: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Medians of steps in which every stream gets a token, in milliseconds.

    `reduce_ms` is what the first rank spends in sums over the ranks; `wait_ms` is the part of it until the other
    rank has arrived there too.
    """

    tokens_per_second: float
    step_ms: float
    schedule_ms: float
    reduce_ms: float
    wait_ms: float
    numerics: str


class _Stopwatch:
    """Adds up the seconds in which a function runs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        start_s = time.perf_counter()
        try:
            return self._function(*args)
        finally:
            self.seconds += time.perf_counter() - start_s


def measure(job: Job) -> Timing:
    """Load the model and decode."""
    sums, waits = _Stopwatch(DeepSpeedGroup.sum_rows), _Stopwatch(Arrivals.meet)
    DeepSpeedGroup.sum_rows = lambda group, rows: sums(group, rows)  # type: ignore[assignment, method-assign]
    Arrivals.meet = lambda arrivals: waits(arrivals)  # type: ignore[assignment, method-assign]
    config = EngineConfig(
        model=job.model,
        device="cpu",
        max_model_len=1024,
        max_num_seqs=job.num_streams,
        num_threads=job.num_threads,
        tensor_parallel_size=job.num_ranks,
    )
    executor = build_executor(config, lambda *_: None, _give_up)
    try:
        return _decode(job, executor, sums, waits)
    finally:
        executor.close()


def _decode(job: Job, executor: Executor, sums: _Stopwatch, waits: _Stopwatch) -> Timing:
    scheduler = Scheduler(SchedulerConfig(max_num_seqs=job.num_streams), executor.info)
    for number in range(job.num_streams):
        scheduler.add(_request(number, job.num_tokens))
    steps: list[tuple[float, float, float, float]] = []  # seconds of the step, of scheduling, of sums, of waits
    while scheduler.has_work:
        start_s, summed_s, waited_s = time.perf_counter(), sums.seconds, waits.seconds
        step = scheduler.schedule()
        assert step is not None
        scheduled_s = time.perf_counter()
        output = executor.submit(step).result()
        executed_s = time.perf_counter()
        scheduler.apply(step, output)
        end_s = time.perf_counter()
        if step.num_tokens == job.num_streams == len(step.chunks):
            scheduling_s = scheduled_s - start_s + end_s - executed_s
            steps.append((end_s - start_s, scheduling_s, sums.seconds - summed_s, waits.seconds - waited_s))
    step_s, schedule_s, sum_s, wait_s = (_median(column) for column in zip(*steps[NUM_WARM_UP_STEPS:], strict=True))
    return Timing(
        tokens_per_second=job.num_streams / step_s,
        step_ms=step_s * 1000,
        schedule_ms=schedule_s * 1000,
        reduce_ms=sum_s * 1000,
        wait_ms=wait_s * 1000,
        numerics=executor.info.numerics,
    )


def _request(number: int, num_tokens: int) -> EngineRequest:
    prompt = [3 + (number * 31 + position * 7) % 1000 for position in range(PROMPT_LEN)]
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return EngineRequest(f"stream-{number}", prompt, params, number, [SequenceStart(0)])


def _median(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]


def _give_up(reason: str) -> None:
    sys.exit(reason)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure(Job(**json.load(sys.stdin))))))
