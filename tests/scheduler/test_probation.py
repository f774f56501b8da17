"""Which request is blamed for an engine's death, and which never are."""

from distllm.scheduler.probation import MAX_TRIAL_STEPS, Probation


def pass_trial(probation: Probation, request_id: str) -> None:
    """Steps with the request, until others may join the engine."""
    for _ in range(MAX_TRIAL_STEPS):
        probation.passed_step([request_id])


def test_requests_of_a_dead_engine_go_back_one_at_a_time() -> None:
    probation = Probation()
    assert probation.engine_died(["a", "b", "c"], ["a", "b", "c"]) is None
    assert probation.release() == ["a"]
    assert probation.release() == []
    assert probation.holds("b")
    assert not probation.holds("a")
    pass_trial(probation, "a")
    assert probation.release() == ["b"]


def test_a_trial_lasts_beyond_the_step_that_computes_the_known_tokens_anew() -> None:
    probation = Probation()
    probation.engine_died(["a", "b"], ["a", "b"])
    assert probation.release() == ["a"]
    probation.passed_step(["a"])
    assert probation.release() == []
    probation.passed_step(["a"])
    assert probation.release() == ["b"]


def test_the_request_on_trial_is_blamed_at_its_second_death() -> None:
    probation = Probation()
    live = ["innocent", "poison"]
    probation.engine_died(live, live)
    assert probation.release() == ["innocent"]
    pass_trial(probation, "innocent")
    assert probation.release() == ["poison"]
    assert probation.engine_died(live, live) is None
    assert probation.release() == ["poison"]
    assert probation.engine_died(["poison"], live) == "poison"
    assert probation.release() == ["innocent"]


def test_a_lone_request_is_blamed_at_the_second_death() -> None:
    probation = Probation()
    assert probation.engine_died(["only"], ["only"]) is None
    assert probation.release() == ["only"]
    assert probation.engine_died(["only"], ["only"]) == "only"


def test_a_trial_that_is_passed_clears_the_strikes() -> None:
    probation = Probation()
    for _ in range(5):
        assert probation.engine_died(["only"], ["only"]) is None
        assert probation.release() == ["only"]
        pass_trial(probation, "only")


def run_until_death(probation: Probation, killer: str, num_steps: int) -> set[str]:
    """The requests in an engine that dies in the killer's `num_steps`-th step in it."""
    released: set[str] = set()
    while True:
        released.update(probation.release())
        num_steps -= killer in released
        if num_steps == 0:
            return released
        probation.passed_step(released)


def test_a_request_that_always_kills_in_its_seventh_step_is_found_among_innocents() -> None:
    probation = Probation()
    live = ["a", "late killer", "z"]
    culprit = probation.engine_died(live, live)
    num_deaths = 1
    while culprit is None and num_deaths < 10:
        culprit = probation.engine_died(run_until_death(probation, "late killer", 7), live)
        num_deaths += 1
    assert (culprit, num_deaths) == ("late killer", 5)


def test_what_comes_during_trials_waits_until_all_have_passed() -> None:
    probation = Probation()
    assert probation.admit("before")
    probation.engine_died(["a"], ["a", "waiting"])
    assert probation.holds("waiting")
    assert not probation.admit("late")
    assert probation.release() == ["a"]
    assert probation.release() == []
    pass_trial(probation, "a")
    assert probation.release() == ["waiting", "late"]
    assert probation.admit("after")


def test_a_trial_that_had_not_begun_is_no_strike() -> None:
    probation = Probation()
    probation.engine_died(["a", "b"], ["a", "b"])
    for _ in range(5):
        assert probation.release() == ["a"]
        assert probation.engine_died([], ["a", "b"]) is None
    assert probation.release() == ["a"]
    assert probation.engine_died(["a"], ["a", "b"]) is None
    assert probation.release() == ["a"]
    assert probation.engine_died(["a"], ["a", "b"]) == "a"


def test_a_suspect_that_ends_makes_room_for_the_next() -> None:
    probation = Probation()
    probation.engine_died(["a", "b"], ["a", "b", "c"])
    assert probation.release() == ["a"]
    probation.forget("a")
    assert probation.release() == ["b"]
    probation.forget("c")
    probation.forget("b")
    assert probation.release() == []


def test_a_death_without_requests_blames_nobody() -> None:
    probation = Probation()
    assert probation.engine_died([], []) is None
    assert probation.release() == []
    assert probation.admit("new")
