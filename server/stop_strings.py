"""Finds stop strings in a text that arrives in pieces, and holds back what may become one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Release:
    """Text that is certain, and whether a stop string ended it."""

    text: str
    is_stopped: bool = False


class StopMatcher:
    """Feed pieces of text; get back the part before the first stop string that completes.

    What is found does not depend on where the pieces are cut. Of stop strings that complete at the same character
    the longest counts. Held back is at most one character less than the longest stop string.
    """

    def __init__(self, stop_strings: tuple[str, ...], include_stop: bool = False) -> None:
        self._stop_strings = stop_strings
        self._include_stop = include_stop
        self._held = ""

    def feed(self, piece: str) -> Release:
        """Take a piece. After `is_stopped` nothing more may be fed."""
        if not self._stop_strings:
            return Release(piece)
        text = self._held + piece
        if found := self._first_stop(text):
            start, end = found
            self._held = ""
            return Release(text[: end if self._include_stop else start], is_stopped=True)
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return Release(text[: len(text) - num_held])

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def pass_by(self, piece: str) -> str:
        """Take a piece in which stop strings do not count; returns all text so far held and the piece."""
        return self.flush() + piece

    def _first_stop(self, text: str) -> tuple[int, int] | None:
        """(start, end) of the stop string that completes first."""
        found = [(start + len(stop), start) for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if not found:
            return None
        end, start = min(found)
        return start, end

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = 0
        for stop in self._stop_strings:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
