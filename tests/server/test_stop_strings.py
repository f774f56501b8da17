"""Stop strings end a text at the same place wherever its pieces are cut, and hold back no more than they must."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.server.stop_strings import StopMatcher

LETTERS = st.text(alphabet="ab😀é", max_size=30)
STOPS = st.lists(st.text(alphabet="ab😀é", min_size=1, max_size=5), max_size=4).map(tuple)


def cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place for place in cuts if place <= len(text))})
    return [text[start:end] for start, end in pairwise(places)]


def first_completed_stop(text: str, stops: tuple[str, ...]) -> tuple[int, int] | None:
    """(start, end) by trying every end: the definition."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts), end
    return None


def feed_all(matcher: StopMatcher, pieces: list[str]) -> tuple[str, bool]:
    released = ""
    for piece in pieces:
        release = matcher.feed(piece)
        released += release.text
        if release.is_stopped:
            return released, True
    return released + matcher.flush(), False


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30)), include=st.booleans())
@settings(max_examples=500)
def test_the_cuts_do_not_matter(text: str, stops: tuple[str, ...], cuts: list[int], include: bool) -> None:
    found = first_completed_stop(text, stops)
    released, is_stopped = feed_all(StopMatcher(stops, include), cut(text, cuts))
    assert is_stopped == (found is not None)
    assert released == (text if found is None else text[: found[1 if include else 0]])


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30)))
@settings(max_examples=300)
def test_released_text_is_never_taken_back(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    matcher = StopMatcher(stops)
    seen = ""
    for piece in cut(text, cuts):
        release = matcher.feed(piece)
        seen += release.text
        if release.is_stopped:
            break
    found = first_completed_stop(text, stops)
    assert (text if found is None else text[: found[0]]).startswith(seen)


@given(text=LETTERS, stops=STOPS.filter(bool))
@settings(max_examples=300)
def test_less_than_the_longest_stop_string_is_held_back(text: str, stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    released = ""
    for number, character in enumerate(text, 1):
        release = matcher.feed(character)
        if release.is_stopped:
            return
        released += release.text
        assert number - len(released) < max(map(len, stops))


def test_text_that_cannot_begin_a_stop_string_is_released_at_once() -> None:
    assert StopMatcher(("\n\n",)).feed("one line").text == "one line"


def test_the_longest_of_stop_strings_that_end_together_counts() -> None:
    assert StopMatcher(("b", "ab")).feed("xab").text == "x"


def test_a_passed_by_piece_cannot_stop_but_releases_everything() -> None:
    matcher = StopMatcher(("stop",))
    assert matcher.feed("a st").text == "a "
    assert matcher.pass_by("op and stop") == "stop and stop"
    assert matcher.feed("stop").is_stopped
