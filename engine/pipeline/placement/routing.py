"""Where a request runs: here, here with layers offloaded, or in the pipeline. Arithmetic on live predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distllm.engine.duration import duration

Route = Literal["local", "offload", "pipeline"]
Why = Literal["cheapest", "fastest", "stays"]
"""Of what meets the target the cheapest; the fastest where nothing does; the session's last, which is as good."""

_HYSTERESIS = 0.2
"""A session's last route is left only for one that is better by more than this part."""


class NoRoute(Exception):
    """No route can take a request; the message says why of each."""


@dataclass(frozen=True, slots=True)
class RouteState:
    """What a route does now: `tpot_s` under its present load, `queue_s` until a new request would begin.

    `num_machines` are busy with a request while it runs. `unavailable` says why the route cannot be taken.
    """

    route: Route
    prefill_tokens_per_s: float
    tpot_s: float
    queue_s: float
    num_machines: int = 1
    unavailable: str | None = None


@dataclass(frozen=True, slots=True)
class LatencyTarget:
    """What a request should not exceed; None asks for nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class RouteEstimate:
    """Of one request on one route. `machine_s` is what it costs: machines by the seconds that they are busy.

    `explanation` has the numbers in words.
    """

    route: Route
    meets_target: bool
    ttft_s: float
    tpot_s: float
    total_s: float
    machine_s: float
    explanation: str


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """`reason` is a sentence. `estimates` are of the routes that can be taken, `unavailable` says why of others."""

    route: Route
    why: Why
    reason: str
    estimates: tuple[RouteEstimate, ...]
    unavailable: dict[Route, str]

    @property
    def estimate(self) -> RouteEstimate:
        """Of the route that is taken."""
        return next(estimate for estimate in self.estimates if estimate.route == self.route)


def choose_route(
    states: Sequence[RouteState],
    prompt_tokens: int,
    max_new_tokens: int,
    target: LatencyTarget,
    last_route: Route | None = None,
) -> RouteDecision:
    """The cheapest route that meets the target, else the fastest; of equals the first. Raises NoRoute.

    A session stays on its `last_route` where no other is better by more than a fifth, and it meets the target made
    a fifth laxer, or nothing meets the target.
    """
    unavailable = {state.route: state.unavailable for state in states if state.unavailable is not None}
    estimates = tuple(
        estimate_route(state, prompt_tokens, max_new_tokens, target)
        for state in states
        if state.unavailable is None
    )
    if not estimates:
        raise NoRoute("; ".join(f"{route}: {reason}" for route, reason in unavailable.items()) or "no routes")
    best, why, reason = _best(estimates)
    last = next((estimate for estimate in estimates if estimate.route == last_route), None)
    if last and last is not best and _is_good_enough(last, best, target):
        stays = f"The session stays on {last.route}, as {best.route} is not better by more than {_HYSTERESIS:.0%}"
        return RouteDecision(last.route, "stays", f"{stays}: {numbers(last)}.", estimates, unavailable)
    return RouteDecision(best.route, why, reason, estimates, unavailable)


def estimate_route(
    state: RouteState, prompt_tokens: int, max_new_tokens: int, target: LatencyTarget
) -> RouteEstimate:
    """The last chunk's way through the model counts as one more token, with which the answer begins."""
    first_token_s = prompt_tokens / state.prefill_tokens_per_s + state.tpot_s
    busy_s = first_token_s + (max_new_tokens - 1) * state.tpot_s
    ttft_s, total_s = state.queue_s + first_token_s, state.queue_s + busy_s
    meets_target = _meets(ttft_s, state.tpot_s, target)
    return RouteEstimate(
        route=state.route,
        meets_target=meets_target,
        ttft_s=ttft_s,
        tpot_s=state.tpot_s,
        total_s=total_s,
        machine_s=state.num_machines * busy_s,
        explanation=(
            f"{state.route} {'meets' if meets_target else 'misses'} the target: "
            f"{duration(state.queue_s)} in the queue, {duration(first_token_s)} to the first token, "
            f"{duration(state.tpot_s)} for each other, {duration(total_s)} in all; "
            f"it keeps {state.num_machines} {'machine' if state.num_machines == 1 else 'machines'} busy"
        ),
    )


def numbers(estimate: RouteEstimate) -> str:
    """What is compared with the target, in words."""
    return f"TTFT {duration(estimate.ttft_s)}, TPOT {duration(estimate.tpot_s)}"


def _best(estimates: Sequence[RouteEstimate]) -> tuple[RouteEstimate, Why, str]:
    """With the reason for it."""
    meeting = [estimate for estimate in estimates if estimate.meets_target]
    if meeting:
        cheapest = min(meeting, key=lambda estimate: estimate.machine_s)
        return cheapest, "cheapest", f"{cheapest.route} is the cheapest that meets the target: {numbers(cheapest)}."
    fastest = min(estimates, key=lambda estimate: estimate.total_s)
    reason = f"No route meets the target, and {fastest.route} is the fastest: {numbers(fastest)}."
    return fastest, "fastest", reason


def _is_good_enough(last: RouteEstimate, best: RouteEstimate, target: LatencyTarget) -> bool:
    if not best.meets_target:
        return last.total_s <= (1 + _HYSTERESIS) * best.total_s
    nearly_meets = _meets(last.ttft_s, last.tpot_s, target, laxer_by=_HYSTERESIS)
    return nearly_meets and last.machine_s <= (1 + _HYSTERESIS) * best.machine_s


def _meets(ttft_s: float, tpot_s: float, target: LatencyTarget, laxer_by: float = 0.0) -> bool:
    def is_within(seconds: float, most: float | None) -> bool:
        return most is None or seconds <= (1 + laxer_by) * most

    return is_within(ttft_s, target.ttft_s) and is_within(tpot_s, target.tpot_s)
