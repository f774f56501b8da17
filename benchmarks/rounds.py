"""Repeated measurements of several servers, and what their medians say. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One server's figures in one round. None is what this kind of server has no such figure for.

    `start_s` runs from the process's start to readiness: loading and packing weights. `first_answer_s` is the time
    to the first token of the first request ever sent to it.
    """

    output_throughput: float
    decode_throughput: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None
    start_s: float | None = None
    first_answer_s: float | None = None
    memory_mib: float | None = None


FIGURES = {
    "output_throughput": ("output tokens/s, whole run", True),
    "decode_throughput": ("output tokens/s, all streams decoding", True),
    "ttft_ms": ("median TTFT, ms", False),
    "tpot_ms": ("median TPOT, ms", False),
    "e2el_ms": ("median E2EL, ms", False),
    "start_s": ("start until ready, s", False),
    "first_answer_s": ("first token of the first request, s", False),
    "memory_mib": ("memory (PSS), MiB", False),
}
"""Each figure's words, and whether more of it is better."""


def medians(rounds: Sequence[Round]) -> Round:
    """The median of each figure over the rounds that have it."""
    values: dict[str, float | None] = {}
    for field in fields(Round):
        present = [value for one in rounds if (value := getattr(one, field.name)) is not None]
        values[field.name] = median(present) if present else None
    return Round(**values)  # type: ignore[arg-type]


def ratios(ours: Round, theirs: Round) -> dict[str, float]:
    """How many times better ours is, for every figure that both have: above 1 is in our favour."""
    found: dict[str, float] = {}
    for name, (_, is_more_better) in FIGURES.items():
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine and other:
            found[name] = mine / other if is_more_better else other / mine
    return found


def markdown_table(results: Mapping[str, Sequence[Round]]) -> str:
    """A table of medians; the first server is ours, and the others' columns say how many times better it is."""
    names = list(results)
    middle = {name: medians(rounds) for name, rounds in results.items()}
    better = {name: ratios(middle[names[0]], middle[name]) for name in names[1:]}
    lines = [_row(["median of rounds", *(f"`{name}`" for name in names)]), _row(["---"] + ["---:"] * len(names))]
    for figure, (label, _) in FIGURES.items():
        if asdict(middle[names[0]])[figure] is None:
            continue
        cells = [_number(getattr(middle[names[0]], figure))]
        cells += [_compared(getattr(middle[name], figure), better[name].get(figure)) for name in names[1:]]
        lines.append(_row([label, *cells]))
    return "\n".join(lines)


def _compared(value: float | None, ratio: float | None) -> str:
    return "" if value is None or ratio is None else f"{_number(value)} ({_number(ratio)}x)"


def _number(value: float) -> str:
    """Three figures, never in powers of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
