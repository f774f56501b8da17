"""How fast a route is taken to be, after what its engine has reported."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.scheduler.stats import EngineStats
from distllm.server.routing.pace import Pace


class Engine:
    """Reports as one that has computed the steps that it is told of."""

    def __init__(self) -> None:
        self.stats = EngineStats()

    def decode(self, num_steps: int, num_sequences: int, step_s: float) -> EngineStats:
        stats = self.stats
        self.stats = msgspec.structs.replace(
            stats,
            steps_total=stats.steps_total + num_steps,
            decode_steps_total=stats.decode_steps_total + num_steps,
            decode_sequences_total=stats.decode_sequences_total + num_steps * num_sequences,
            decode_s_total=stats.decode_s_total + num_steps * step_s,
        )
        return self.stats

    def prefill(self, num_tokens: int, seconds: float, num_steps: int = 1) -> EngineStats:
        stats = self.stats
        self.stats = msgspec.structs.replace(
            stats,
            steps_total=stats.steps_total + num_steps,
            prefill_steps_total=stats.prefill_steps_total + num_steps,
            prefill_tokens_total=stats.prefill_tokens_total + num_tokens,
            prefill_s_total=stats.prefill_s_total + seconds,
        )
        return self.stats


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def pace() -> Pace:
    return Pace(EngineStats())


def test_nothing_is_known_before_the_first_report(pace: Pace) -> None:
    assert not pace.is_measured
    assert (pace.tpot_s(1), pace.prefill_tokens_per_s, pace.said_part) == (None, None, 1.0)


def test_a_prompt_is_predicted_without_the_token_that_follows_it(pace: Pace, engine: Engine) -> None:
    engine.prefill(128, 0.138)
    pace.note(engine.decode(8, 1, 0.01))
    assert pace.is_measured
    assert pace.tpot_s(1) == pytest.approx(0.01)
    assert pace.prefill_tokens_per_s == pytest.approx(1000)


def test_prompts_of_a_few_tokens_tell_nothing_of_prefill(pace: Pace, engine: Engine) -> None:
    engine.decode(8, 1, 0.01)
    pace.note(engine.prefill(5, 0.01))
    assert pace.prefill_tokens_per_s is None


def test_each_number_of_sequences_has_a_pace_of_its_own(pace: Pace, engine: Engine) -> None:
    pace.note(engine.decode(8, 1, 0.01))
    pace.note(engine.decode(8, 32, 0.08))
    assert pace.tpot_s(1) == pytest.approx(0.01)
    assert pace.tpot_s(16) == pytest.approx(0.01 + 15 / 31 * 0.07), "between those on either side"
    assert pace.tpot_s(63) == pytest.approx(0.15), "on the same line"


def test_more_sequences_than_were_met_take_at_worst_their_time_after_one_another(
    pace: Pace, engine: Engine
) -> None:
    pace.note(engine.decode(8, 1, 0.01))
    assert pace.tpot_s(8) == pytest.approx(0.08)
    pace.note(engine.decode(8, 2, 0.05))
    assert pace.tpot_s(8) == pytest.approx(0.2)
    pace.note(engine.decode(8, 4, 0.02))
    assert pace.tpot_s(8) == pytest.approx(0.02), "no less than fewer take"


def test_new_reports_replace_old_ones_and_a_pause_counts_little(pace: Pace, engine: Engine) -> None:
    pace.note(engine.decode(8, 1, 0.01))
    pace.note(engine.decode(4, 1, 100.0))
    assert (pace.tpot_s(1) or 0) < 0.02
    for _ in range(20):
        pace.note(engine.decode(8, 1, 0.03))
    assert pace.tpot_s(1) == pytest.approx(0.03, rel=0.05)


def test_an_engine_that_was_started_anew_counts_from_its_first_step(pace: Pace, engine: Engine) -> None:
    pace.note(engine.decode(100, 1, 0.01))
    successor = Engine()
    pace.note(successor.decode(2, 1, 9.0))
    for _ in range(3):
        pace.note(successor.decode(8, 1, 0.01))
    assert pace.tpot_s(1) == pytest.approx(0.01)


def test_answers_are_expected_to_be_as_long_as_those_before(pace: Pace) -> None:
    for _ in range(30):
        pace.note_end(num_asked=2000, num_said=100)
    assert pace.said_part == pytest.approx(0.05)
    pace.note_end(num_asked=10, num_said=10)
    assert pace.said_part == pytest.approx(0.05, rel=0.05), "short answers weigh little"


@given(st.dictionaries(st.integers(1, 200), st.floats(1e-4, 1.0), min_size=1), st.integers(1, 500))
def test_what_was_not_met_lies_between_its_neighbours(known: dict[int, float], num_sequences: int) -> None:
    pace, engine = Pace(EngineStats()), Engine()
    for number, seconds in known.items():
        pace.note(engine.decode(8, number, seconds))
    predicted = pace.tpot_s(num_sequences)
    assert predicted is not None
    assert predicted >= 0.99 * min(known.values())
    if num_sequences <= max(known):
        assert predicted <= 4.01 * max(known.values())
