"""From timed messages to what a link does. Sends nothing: who probes a link gives its samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from distllm.engine.pipeline.placement.measurements import Link, PeerId

MIN_SAMPLES = 3
"""Of each kind: the median of three is not moved by one outlier."""


class ProbeError(ValueError):
    """The samples do not tell what the link does."""


@dataclass(frozen=True, slots=True)
class TimedTransfer:
    """`seconds` from sending the first of `num_bytes` to the answer that all have come."""

    num_bytes: int
    seconds: float


def measured_link(
    source: PeerId, target: PeerId, round_trips_s: Sequence[float], transfers: Sequence[TimedTransfer]
) -> Link:
    """Raises ProbeError where samples are too few or tell nothing."""
    return Link(source, target, one_way_delay_s(round_trips_s), goodput_bytes_per_s(transfers))


def one_way_delay_s(round_trips_s: Sequence[float]) -> float:
    """Half the median round trip of an empty message: both ways are taken to be alike. Raises ProbeError."""
    if len(round_trips_s) < MIN_SAMPLES:
        raise ProbeError(f"{len(round_trips_s)} round trips are too few: at least {MIN_SAMPLES}")
    return median(round_trips_s) / 2


def goodput_bytes_per_s(transfers: Sequence[TimedTransfer]) -> float:
    """More bytes by more time, between the medians of the smallest and the largest size: the round trip cancels.

    Where the larger size took no longer, its bytes by its whole time, which is the least that it can be. Raises
    ProbeError.
    """
    sizes = sorted({transfer.num_bytes for transfer in transfers})
    if len(sizes) < 2:
        raise ProbeError("transfers of two sizes tell goodput, and there is one size or none")
    small, large = sizes[0], sizes[-1]
    small_s, large_s = _median_s(transfers, small), _median_s(transfers, large)
    if large_s <= 0:
        raise ProbeError(f"{large} bytes took no time")
    return (large - small) / (large_s - small_s) if large_s > small_s else large / large_s


def _median_s(transfers: Sequence[TimedTransfer], num_bytes: int) -> float:
    seconds = [transfer.seconds for transfer in transfers if transfer.num_bytes == num_bytes]
    if len(seconds) < MIN_SAMPLES:
        raise ProbeError(f"{len(seconds)} transfers of {num_bytes} bytes are too few: at least {MIN_SAMPLES}")
    return median(seconds)
