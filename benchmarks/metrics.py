"""Figures of a run, in the terms of `vllm bench serve`. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from benchmarks.answers import Answer
from benchmarks.load import LoadResult

PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class Goals:
    """Service level objectives in milliseconds; a request is good if it meets all that are given."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> "Goals":
        """From `name:milliseconds` each. Raises ValueError."""
        goals: dict[str, float] = {}
        for pair in pairs:
            name, _, limit = pair.partition(":")
            try:
                if name not in cls.__slots__ or float(limit) <= 0:
                    raise ValueError
            except ValueError:
                message = f"{pair!r} is no goal; write ttft:MS, tpot:MS or e2el:MS with a positive number"
                raise ValueError(message) from None
            goals[name] = float(limit)
        return cls(**goals)

    @property
    def are_given(self) -> bool:
        return (self.ttft, self.tpot, self.e2el) != (None, None, None)

    def are_met_by(self, answer: Answer) -> bool:
        """A request of one token has no TPOT and meets any."""
        measured = ((self.ttft, answer.ttft_s), (self.tpot, answer.tpot_s or 0.0), (self.e2el, answer.e2el_s))
        return all(limit is None or seconds * 1000 <= limit for limit, seconds in measured)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds. `percentiles` maps 25 to the 25th and so on, interpolated linearly. Zeros without samples."""

    num_samples: int
    mean: float
    median: float
    std: float
    percentiles: dict[float, float]

    @classmethod
    def of_seconds(cls, seconds: Iterable[float]) -> "Distribution":
        samples = np.fromiter(seconds, dtype=np.float64) * 1000
        num_samples = samples.size
        if num_samples == 0:
            samples = np.zeros(1)
        points = np.percentile(samples, PERCENTILES)
        return cls(
            num_samples=num_samples,
            mean=float(samples.mean()),
            median=float(np.median(samples)),
            std=float(samples.std()),
            percentiles=dict(zip(PERCENTILES, map(float, points), strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. Throughputs are a second of the whole run, from the first sending to the last answer's end."""

    num_completed: int
    num_failed: int
    duration_s: float
    num_input_tokens: int
    num_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    peak_concurrency: int
    client_cpu_share: float
    are_all_counted_by_usage: bool
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2el: Distribution
    failures: dict[str, int]


def summarize(result: LoadResult, goals: Goals) -> Summary:
    """Failed requests count in `num_failed` and `failures` alone."""
    good = [answer for answer in result.answers if answer.failure is None]
    num_input = sum(answer.num_input_tokens for answer in good)
    num_output = sum(answer.num_output_tokens for answer in good)
    num_met = sum(map(goals.are_met_by, good))
    duration_s = result.duration_s
    return Summary(
        num_completed=len(good),
        num_failed=len(result.answers) - len(good),
        duration_s=duration_s,
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        request_throughput=len(good) / duration_s,
        request_goodput=num_met / duration_s if goals.are_given else None,
        output_throughput=num_output / duration_s,
        total_token_throughput=(num_input + num_output) / duration_s,
        peak_concurrency=peak_concurrency(good),
        client_cpu_share=result.client_cpu_s / duration_s,
        are_all_counted_by_usage=all(answer.is_counted_by_usage for answer in good),
        ttft=Distribution.of_seconds(answer.ttft_s for answer in good),
        tpot=Distribution.of_seconds(tpot for answer in good if (tpot := answer.tpot_s) is not None),
        itl=Distribution.of_seconds(itl for answer in good for itl in answer.itls_s),
        e2el=Distribution.of_seconds(answer.e2el_s for answer in good),
        failures=_count(answer.failure for answer in result.answers if answer.failure is not None),
    )


def peak_concurrency(answers: Sequence[Answer]) -> int:
    """Most requests between their sending and their last token at one moment."""
    sent = [(answer.sent_s, 1) for answer in answers]
    ended = [(answer.sent_s + answer.e2el_s, -1) for answer in answers]
    return max(accumulate(change for _, change in sorted(sent + ended)), default=0)


def _count(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts
