"""How streams are compared token by token."""

import pytest

from benchmarks.watched_streams import UNHARMED, Damage, WatchedStream, damage_of


def stream(tokens: str, num_ends: int = 1, error: str | None = None) -> WatchedStream:
    return WatchedStream(0.0, list(tokens), [float(number) for number in range(len(tokens))], num_ends, error)


@pytest.mark.parametrize(
    ("found", "damage"),
    [
        ("abcdef", UNHARMED),
        ("abef", Damage(lost=2)),
        ("abcd", Damage(lost=2)),
        ("abcdcdef", Damage(repeated=2)),
        ("abxdef", Damage(altered=1)),
        ("", Damage(lost=6)),
    ],
)
def test_tokens_are_lost_repeated_or_altered(found: str, damage: Damage) -> None:
    assert damage_of([stream("abcdef")], [stream(found)]) == damage


@pytest.mark.parametrize(("num_ends", "error"), [(0, None), (2, None), (1, "gone")])
def test_a_stream_without_exactly_one_good_end_has_failed(num_ends: int, error: str | None) -> None:
    assert damage_of([stream("ab")], [stream("ab", num_ends, error)]) == Damage(failed=1)


def test_a_stall_is_the_longest_time_between_tokens() -> None:
    halting = WatchedStream(0.0, list("abc"), [5.0, 6.0, 9.0], 1)
    assert halting.stall_s == 3.0
    assert stream("a").stall_s == 0.0
