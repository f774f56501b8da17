"""A peer that was blamed makes way for others, but not for nobody; each time it waits longer."""

from distllm.engine.pipeline.coordinator.standing import Standing


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_peer_without_blame_may_serve() -> None:
    standing = Standing(Clock())
    assert (standing.trouble, standing.may_be_needed) == (None, True)


def test_a_blamed_peer_is_needed_after_a_second_and_forgiven_after_five() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.blame("it was silent")
    assert (standing.trouble, standing.may_be_needed) == ("it was silent", False)
    clock.now_s += 1.1
    assert (standing.trouble, standing.may_be_needed) == ("it was silent", True)
    clock.now_s += 4.0
    assert (standing.trouble, standing.may_be_needed) == (None, True)


def test_one_fault_counts_once_until_the_peer_serves_again() -> None:
    clock = Clock()
    standing = Standing(clock)
    for _ in range(5):
        standing.blame("it was silent")
    clock.now_s += 1.1
    assert standing.may_be_needed


def test_each_time_it_waits_longer_until_it_was_good_for_a_while() -> None:
    clock = Clock()
    standing = Standing(clock)
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        standing.blame("it lies")
        clock.now_s += pause_s - 0.1
        assert standing.may_be_needed is False
        clock.now_s += 0.2
        assert (standing.may_be_needed,) == (True,)
        standing.forgive()
        assert standing.trouble is None
    clock.now_s += 121.0
    standing.blame("it was silent")
    clock.now_s += 1.1
    assert standing.may_be_needed


def test_a_peer_that_was_away_is_needed_as_soon_as_it_is_back() -> None:
    clock = Clock()
    standing = Standing(clock)
    for _ in range(5):
        standing.note_absence("it has gone")
        assert (standing.trouble, standing.may_be_needed) == ("it has gone", True)
        clock.now_s += 1.0
    clock.now_s += 4.1
    assert standing.trouble is None


def test_a_blame_outweighs_an_absence() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.blame("it lied")
    standing.note_absence("it has gone")
    assert (standing.trouble, standing.may_be_needed) == ("it lied", False)
