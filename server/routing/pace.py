"""How fast an engine has been lately, by how many sequences ran: smoothed from the figures that it reports.

An engine counts its steps and their seconds itself, so that a front end that is slow to read changes nothing.
"""

from dataclasses import dataclass

from distllm.scheduler.stats import EngineStats

_WEIGHT = 0.2
"""Of a new sample in a smoothed figure."""
_MOST_TIMES = 4.0
"""A sample counts as at most so many times the figure that it joins: a pause says nothing of the pace."""
_SAMPLE_STEPS = 4
_SAMPLE_PREFILL = 32
"""Steps that carry fewer tokens of prompts take as long as those of one token, and tell nothing of prefill."""


@dataclass(frozen=True, slots=True)
class _Point:
    """What a token has taken where about so many sequences ran."""

    num_sequences: float
    tpot_s: float


class Pace:
    """Every figure is None before its first sample. There is a point for each power of two of sequences."""

    def __init__(self, since: EngineStats) -> None:
        """Of an engine that has reported `since`."""
        self._points: dict[int, _Point] = {}  # by the bit length of the number of sequences
        self._prefill_token_s: float | None = None
        self._decode_from = self._prefill_from = since
        self._num_asked = self._num_said = 0.0

    @property
    def is_measured(self) -> bool:
        return bool(self._points) and self._prefill_token_s is not None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        return None if self._prefill_token_s is None else 1 / self._prefill_token_s

    def note(self, stats: EngineStats) -> None:
        """Take in what the engine reports after any step."""
        if stats.steps_total < self._decode_from.steps_total:  # another engine
            self._decode_from = self._prefill_from = stats
        self._note_decode(stats)
        self._note_prefill(stats)

    @property
    def said_part(self) -> float:
        """Of the tokens that sequences might have had, those that they had when they ended."""
        return self._num_said / self._num_asked if self._num_asked else 1.0

    def note_end(self, num_asked: int, num_said: int) -> None:
        """Of a sequence that came to its own end."""
        self._num_asked += num_asked - _WEIGHT * self._num_asked
        self._num_said += num_said - _WEIGHT * self._num_said

    def tpot_s(self, num_sequences: int) -> float | None:
        """The time a token of each of so many, on the lines between the numbers that were met.

        Fewer than any that were met take no less. More lie on the line of the last two, which rises, and at most as
        if each took its time after the others; so they do where one number was met.
        """
        points = sorted(self._points.values(), key=lambda point: point.num_sequences)
        above = next((place for place, point in enumerate(points) if point.num_sequences >= num_sequences), None)
        if not points or above == 0:
            return points[0].tpot_s if points else None
        if above is not None:
            return _on_line(points[above - 1], points[above], num_sequences)
        last = points[-1]
        worst_s = last.tpot_s * num_sequences / last.num_sequences
        if len(points) == 1:
            return worst_s
        return min(worst_s, max(last.tpot_s, _on_line(points[-2], last, num_sequences)))

    def _note_decode(self, stats: EngineStats) -> None:
        before = self._decode_from
        num_steps = stats.decode_steps_total - before.decode_steps_total
        if num_steps < _SAMPLE_STEPS:
            return
        self._decode_from = stats
        num_sequences = (stats.decode_sequences_total - before.decode_sequences_total) / num_steps
        tpot_s = (stats.decode_s_total - before.decode_s_total) / num_steps
        size = round(num_sequences).bit_length()
        known = self._points.get(size, _Point(num_sequences, tpot_s))
        self._points[size] = _Point(_smoothed(known.num_sequences, num_sequences), _smoothed(known.tpot_s, tpot_s))

    def _note_prefill(self, stats: EngineStats) -> None:
        """Without the time of a token in each step, which is predicted apart."""
        before = self._prefill_from
        num_steps = stats.prefill_steps_total - before.prefill_steps_total
        num_tokens = stats.prefill_tokens_total - before.prefill_tokens_total
        token_s = self.tpot_s(1)
        if num_steps == 0 or token_s is None:
            return
        self._prefill_from = stats
        if num_tokens >= _SAMPLE_PREFILL * num_steps:
            steps_s = stats.prefill_s_total - before.prefill_s_total
            prefill_s = max(0.1 * steps_s, steps_s - num_steps * token_s)
            self._prefill_token_s = _smoothed(self._prefill_token_s, prefill_s / num_tokens)


def _on_line(low: _Point, high: _Point, num_sequences: float) -> float:
    part = (num_sequences - low.num_sequences) / (high.num_sequences - low.num_sequences)
    return low.tpot_s + part * (high.tpot_s - low.tpot_s)


def _smoothed(before: float | None, sample: float) -> float:
    if before is None:
        return sample
    return before + _WEIGHT * (min(sample, _MOST_TIMES * before) - before)
