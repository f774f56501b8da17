"""Which request is blamed for an engine's death, and which never are."""

from distllm.scheduler.probation import Probation


def test_requests_of_a_dead_engine_go_back_one_at_a_time() -> None:
    probation = Probation()
    assert probation.engine_died(["a", "b", "c"]) is None
    assert probation.next_trial() == "a"
    assert probation.next_trial() is None
    assert probation.holds("b")
    assert not probation.holds("a")
    probation.passed_step("a")
    assert probation.next_trial() == "b"


def test_the_request_on_trial_is_blamed_at_its_second_death_alone() -> None:
    probation = Probation()
    probation.engine_died(["innocent", "poison"])
    assert probation.next_trial() == "innocent"
    probation.passed_step("innocent")
    assert probation.next_trial() == "poison"
    assert probation.engine_died(["innocent", "poison"]) is None
    assert probation.next_trial() == "poison"
    assert probation.engine_died(["innocent", "poison"]) == "poison"
    assert probation.next_trial() is None


def test_a_lone_request_is_blamed_at_the_second_death() -> None:
    probation = Probation()
    assert probation.engine_died(["only"]) is None
    assert probation.next_trial() == "only"
    assert probation.engine_died(["only"]) == "only"


def test_a_step_that_is_survived_clears_the_strikes() -> None:
    probation = Probation()
    for _ in range(5):
        assert probation.engine_died(["only"]) is None
        assert probation.next_trial() == "only"
        probation.passed_step("only")


def test_requests_that_came_after_the_death_never_wait() -> None:
    probation = Probation()
    probation.engine_died(["a", "b"])
    assert not probation.holds("late")


def test_a_trial_that_had_not_begun_is_no_strike() -> None:
    probation = Probation()
    probation.engine_died(["a", "b"])
    for _ in range(5):
        assert probation.next_trial() == "a"
        assert probation.engine_died([]) is None
    assert probation.next_trial() == "a"
    assert probation.engine_died(["a"]) is None
    assert probation.next_trial() == "a"
    assert probation.engine_died(["a"]) == "a"


def test_a_suspect_that_ends_makes_room_for_the_next() -> None:
    probation = Probation()
    probation.engine_died(["a", "b"])
    assert probation.next_trial() == "a"
    probation.forget("a")
    assert probation.next_trial() == "b"


def test_a_death_without_requests_blames_nobody() -> None:
    probation = Probation()
    assert probation.engine_died([]) is None
    assert probation.next_trial() is None
