"""What a peer measures of itself: one layer and the head, by rows. Knows callables and a clock, not models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from distllm.engine.pipeline.placement.measurements import RowTimes

MEASURED_ROWS = (1, 2, 4, 8, 16, 32)
_MAX_REPEATS = 25

RunRows = Callable[[int], object]
"""Runs a real layer, or the head, on that many rows, and returns when the device is done."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ComputeTimes:
    """Of one layer and the head, as PeerMeasurements has them. `prefill_s` is a token's share of a long chunk."""

    decode: RowTimes
    head: RowTimes
    prefill_s: float


def measure_layers(
    run_layer: RunRows,
    run_head: RunRows,
    chunk_tokens: int,
    budget_s: float,
    clock: Clock = perf_counter,
) -> ComputeTimes:
    """Time one layer for MEASURED_ROWS and for a chunk, and the head for MEASURED_ROWS.

    Takes about `budget_s`, or longer where a warm-up and one measurement of each take longer.
    """
    tasks = [
        *((run_layer, rows) for rows in MEASURED_ROWS),
        *((run_head, rows) for rows in MEASURED_ROWS),
        (run_layer, chunk_tokens),
    ]
    times = _medians(tasks, budget_s, clock)
    num_rows = len(MEASURED_ROWS)
    return ComputeTimes(
        decode=RowTimes(MEASURED_ROWS, tuple(times[:num_rows])),
        head=RowTimes(MEASURED_ROWS, tuple(times[num_rows : 2 * num_rows])),
        prefill_s=times[-1] / chunk_tokens,
    )


def _medians(tasks: Sequence[tuple[RunRows, int]], budget_s: float, clock: Clock) -> list[float]:
    """Of each task in seconds, after a warm-up; the tasks take turns, so that a busy moment is none's alone."""
    end = clock() + budget_s
    for run, num_rows in tasks:
        run(num_rows)
    samples: list[list[float]] = [[] for _ in tasks]
    for repeat in range(_MAX_REPEATS):
        if repeat and clock() >= end:
            break
        for (run, num_rows), taken in zip(tasks, samples, strict=True):
            begin = clock()
            run(num_rows)
            taken.append(clock() - begin)
    return [median(taken) for taken in samples]
