"""Which way a request takes, and why."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distllm.engine.pipeline.placement.routing import LatencyTarget, NoRoute, Route, RouteState, choose_route

LOCAL = RouteState("local", prefill_tokens_per_s=1000, tpot_s=0.05, queue_s=0.0)
OFFLOAD = RouteState("offload", prefill_tokens_per_s=500, tpot_s=0.5, queue_s=0.0)
PIPELINE = RouteState("pipeline", prefill_tokens_per_s=2000, tpot_s=0.02, queue_s=0.0, num_machines=4)
ALL = (LOCAL, OFFLOAD, PIPELINE)


def test_the_cheapest_that_meets_the_target_is_taken() -> None:
    decision = choose_route(ALL, 1000, 101, LatencyTarget(ttft_s=2.0, tpot_s=0.1))
    assert decision.route == "local"
    assert decision.reason == "local is the cheapest that meets the target: TTFT 1.05 s, TPOT 50.0 ms."
    assert [estimate.machine_s for estimate in decision.estimates] == pytest.approx([6.05, 52.5, 4 * 2.52])


def test_one_that_costs_more_is_taken_where_the_cheaper_miss_the_target() -> None:
    assert choose_route(ALL, 1000, 101, LatencyTarget(tpot_s=0.03)).route == "pipeline"
    busy = replace(LOCAL, queue_s=10.0)
    assert choose_route((busy, OFFLOAD, PIPELINE), 1000, 101, LatencyTarget(ttft_s=2.0)).route == "pipeline"


def test_without_a_target_the_cheapest_is_taken() -> None:
    assert choose_route(ALL, 1000, 101, LatencyTarget()).route == "local"


def test_the_fastest_is_taken_where_none_meets_the_target() -> None:
    decision = choose_route(ALL, 1000, 101, LatencyTarget(ttft_s=0.1))
    assert decision.route == "pipeline"
    assert decision.reason.startswith("No route meets the target, and pipeline is the fastest: ")


def test_every_estimate_explains_itself_with_numbers() -> None:
    decision = choose_route(ALL, 1000, 101, LatencyTarget(ttft_s=1.0))
    assert decision.estimates[2].explanation == (
        "pipeline meets the target: 0.00 µs in the queue, 520 ms to the first token, 20.0 ms for each other, "
        "2.52 s in all; it keeps 4 machines busy"
    )
    assert decision.estimates[0].explanation.startswith("local misses the target: ")


def test_a_route_that_cannot_be_taken_is_explained_and_not_taken() -> None:
    without = replace(LOCAL, unavailable="the model does not fit in memory")
    decision = choose_route((without, OFFLOAD), 10, 10, LatencyTarget())
    assert decision.route == "offload"
    assert decision.unavailable == {"local": "the model does not fit in memory"}


def test_no_route_at_all_says_why_of_each() -> None:
    with pytest.raises(NoRoute, match="local: full; pipeline: no peers"):
        choose_route(
            (replace(LOCAL, unavailable="full"), replace(PIPELINE, unavailable="no peers")), 1, 1, LatencyTarget()
        )


@pytest.mark.parametrize(("machine_factor", "route"), [(1.15, "pipeline"), (1.25, "local")])
def test_a_session_stays_unless_another_route_costs_a_fifth_less(machine_factor: float, route: str) -> None:
    same = replace(
        LOCAL, route="pipeline", prefill_tokens_per_s=1000 / machine_factor, tpot_s=0.05 * machine_factor
    )
    decision = choose_route((LOCAL, same), 1000, 101, LatencyTarget(), last_route="pipeline")
    assert decision.route == route
    assert choose_route((LOCAL, same), 1000, 101, LatencyTarget()).route == "local"


def test_a_session_stays_by_a_reason_that_names_both_routes() -> None:
    same = replace(LOCAL, route="pipeline", tpot_s=0.051)
    decision = choose_route((LOCAL, same), 1000, 101, LatencyTarget(), last_route="pipeline")
    assert decision.reason.startswith(
        "The session stays on pipeline, as local is not better by more than 20%: TTFT 1.05 s"
    )


@pytest.mark.parametrize(("tpot_s", "route"), [(0.059, "local"), (0.061, "pipeline")])
def test_a_session_leaves_a_route_that_misses_the_target_by_a_fifth(tpot_s: float, route: str) -> None:
    states = (replace(LOCAL, tpot_s=tpot_s), replace(PIPELINE, num_machines=1, tpot_s=0.05))
    assert choose_route(states, 1, 10, LatencyTarget(tpot_s=0.05), last_route="local").route == route


@pytest.mark.parametrize(("tpot_s", "route"), [(0.023, "local"), (0.025, "pipeline")])
def test_among_routes_that_miss_the_target_a_session_stays_unless_one_is_a_fifth_faster(
    tpot_s: float, route: str
) -> None:
    states = (replace(LOCAL, prefill_tokens_per_s=2000, tpot_s=tpot_s), PIPELINE)
    assert choose_route(states, 1, 100, LatencyTarget(tpot_s=0.001), last_route="local").route == route


def test_a_last_route_that_cannot_be_taken_any_more_is_left() -> None:
    gone = replace(PIPELINE, unavailable="a peer was lost")
    assert choose_route((LOCAL, gone), 10, 10, LatencyTarget(), last_route="pipeline").route == "local"


def states_of(routes: tuple[Route, ...]) -> st.SearchStrategy[list[RouteState]]:
    seconds = st.floats(1e-4, 1e2)
    each = [
        st.builds(
            RouteState,
            route=st.just(route),
            prefill_tokens_per_s=st.floats(1.0, 1e6),
            tpot_s=seconds,
            queue_s=st.floats(0.0, 1e2),
            num_machines=st.integers(1, 8),
            unavailable=st.none() | st.just("it is away"),
        )
        for route in routes
    ]
    return st.tuples(*each).map(list)


ROUTES: tuple[Route, ...] = ("local", "offload", "pipeline")
STATES = states_of(ROUTES)
TARGETS = st.builds(LatencyTarget, st.none() | st.floats(1e-3, 1e2), st.none() | st.floats(1e-3, 1e1))
TOKENS = st.integers(1, 4096)


@given(STATES, TOKENS, TOKENS, TARGETS, st.sampled_from([None, *ROUTES]))
def test_a_choice_is_never_away_nor_beaten_by_a_fifth_on_what_it_is_chosen_for(
    states: list[RouteState], num_prompt: int, num_new: int, target: LatencyTarget, last: Route | None
) -> None:
    away = {state.route for state in states if state.unavailable is not None}
    if len(away) == len(states):
        with pytest.raises(NoRoute):
            choose_route(states, num_prompt, num_new, target, last)
        return
    decision = choose_route(states, num_prompt, num_new, target, last)
    assert decision.route not in away
    assert {estimate.route for estimate in decision.estimates} | decision.unavailable.keys() == set(ROUTES)
    chosen, slack = decision.estimate, 1.2 if decision.why == "stays" else 1.0
    meeting = [estimate for estimate in decision.estimates if estimate.meets_target]
    if meeting:
        assert chosen.machine_s <= slack * min(estimate.machine_s for estimate in meeting)
        assert chosen.meets_target or decision.why == "stays"
    else:
        assert chosen.total_s <= slack * min(estimate.total_s for estimate in decision.estimates)
    assert decision.why != "stays" or decision.route == last


@given(STATES, TOKENS, TOKENS, TARGETS)
def test_a_session_that_nothing_changes_for_stays(
    states: list[RouteState], num_prompt: int, num_new: int, target: LatencyTarget
) -> None:
    assume(any(state.unavailable is None for state in states))
    first = choose_route(states, num_prompt, num_new, target).route
    assert choose_route(states, num_prompt, num_new, target, first).route == first
