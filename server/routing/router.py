"""Chooses a route for each request by what it is predicted to take, and says why. Starts and ends nothing."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from distllm.engine.duration import duration
from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pipeline.placement.routing import (
    LatencyTarget,
    NoRoute,
    Route,
    RouteDecision,
    choose_route,
    numbers,
)
from distllm.scheduler.client import EngineState
from distllm.scheduler.messages import EngineRequest
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.errors import InvalidRequest, shown
from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.routing.forecast import Forecast
from distllm.server.routing.measured_stream import MeasuredStream
from distllm.server.routing.route import EngineRoute, Size

ROUTE_HEADER = "x-route"
_MAX_SESSIONS = 4096


@dataclass(slots=True)
class Routing:
    """Where a request goes, and what was predicted of it there. `route_now` changes where a prompt is moved."""

    route: EngineRoute
    forecast: Forecast
    route_now: Route = field(init=False)

    def __post_init__(self) -> None:
        self.route_now = self.route.name

    @property
    def is_pinned(self) -> bool:
        """Whether the client wants this route and no other."""
        return self.forecast.reason_class == "forced"

    @property
    def state(self) -> EngineState:
        return self.route.state

    def submit(self, request: EngineRequest) -> MeasuredStream:
        """Of one of its prompts; it stays on a route that its client asked for. Raises as Engine.submit."""
        return self.route.submit(request, self.is_pinned, self._note_move)

    def _note_move(self, route: Route) -> None:
        self.route_now = route


class Router:
    """Of at least one route, the cheapest first. Requests whose prompts begin alike are of one session."""

    def __init__(self, routes: Sequence[EngineRoute], target: LatencyTarget) -> None:
        assert routes
        self.routes = tuple(routes)
        self.target = target
        self.on_move: Callable[[Route, Route], None] = lambda *_: None
        """Is told of every prompt that leaves a route for another."""
        self._last_routes: OrderedDict[tuple[int, ...], Route] = OrderedDict()

    @property
    def unavailable(self) -> dict[Route, str]:
        """Why of each route that makes no progress at present."""
        reasons = ((route.name, route.unavailable) for route in self.routes)
        return {name: reason for name, reason in reasons if reason is not None}

    @property
    def waiting(self) -> str | None:
        """Why no route makes progress at present, None where one does."""
        reasons = self.unavailable
        if len(reasons) < len(self.routes):
            return None
        return _listed(reasons) if len(reasons) > 1 else next(iter(reasons.values()))

    def choose(self, plan: GenerationPlan, asked: str | None) -> Routing:
        """The route of a request, which is remembered for its session. Raises as `predict`."""
        routing = self.predict(plan, asked)
        if len(self.routes) > 1:
            session = _session(plan)
            self._last_routes[session] = routing.route.name
            self._last_routes.move_to_end(session)
            if len(self._last_routes) > _MAX_SESSIONS:
                self._last_routes.popitem(last=False)
        return routing

    def predict(self, plan: GenerationPlan, asked: str | None) -> Routing:
        """Where a request would go; `asked` is the route that its client wants.

        Raises InvalidRequest for one that is not there or has no room, EngineUnavailable where none takes the
        request.
        """
        if asked is not None:
            route = self.named(asked.strip().lower())
            if (reason := route.misfit(size_of(plan))) is not None:
                raise InvalidRequest(f"{ROUTE_HEADER}: {reason}", ROUTE_HEADER, "context_length_exceeded")
            return Routing(route, Forecast(route.name, "forced", f"the request asks for {route.name}"))
        if len(self.routes) == 1:
            (route,) = self.routes
            return Routing(route, Forecast(route.name, "only", f"{route.name} is the only route of this server"))
        try:
            decision = self.decide(plan)
        except NoRoute as nothing:
            return self._that_waits(plan, str(nothing))
        estimate = decision.estimate
        reason = " ".join((decision.reason, *self._beside(decision)))
        forecast = Forecast(decision.route, decision.why, reason, estimate.ttft_s, estimate.tpot_s)
        return Routing(self.named(decision.route), forecast)

    def decide(self, plan: GenerationPlan) -> RouteDecision:
        """What is predicted of each route, whatever the client wants. Raises NoRoute."""
        size = size_of(plan)
        states = [route.route_state(size) for route in self.routes]
        last = self._last_routes.get(_session(plan))
        return choose_route(states, size.prompt_tokens, size.max_new_tokens, self.target, last)

    def named(self, name: str) -> EngineRoute:
        """Raises InvalidRequest."""
        found = next((route for route in self.routes if route.name == name), None)
        if found is None:
            names = " and ".join(route.name for route in self.routes)
            there = f"the routes {names}" if len(self.routes) > 1 else f"the route {names} alone"
            raise InvalidRequest(f"{ROUTE_HEADER} is {shown(name)!r}; this server has {there}", ROUTE_HEADER)
        return found

    def _that_waits(self, plan: GenerationPlan, reason: str) -> Routing:
        """A route that will run the request later, where none can now."""
        size = size_of(plan)
        for route in self.routes:
            if route.takes_requests and route.misfit(size) is None:
                waits = f"no route can run the request now, and {route.name} takes it; {reason}"
                return Routing(route, Forecast(route.name, "waits", waits))
        raise EngineUnavailable(reason)

    def _beside(self, decision: RouteDecision) -> Iterator[str]:
        """Sentences about the other routes, and the target."""
        for estimate in decision.estimates:
            if estimate.route != decision.route:
                yield f"{estimate.route}: {numbers(estimate)}."
        if decision.unavailable:
            yield f"{_listed(decision.unavailable)}."
        wanted = (("TTFT", self.target.ttft_s), ("TPOT", self.target.tpot_s))
        if targets := ", ".join(f"{name} {duration(most)}" for name, most in wanted if most is not None):
            yield f"Target: {targets}."


def size_of(plan: GenerationPlan) -> Size:
    """How much a request asks for."""
    lengths = [(len(prompt.token_ids), prompt.params.max_tokens or 0) for prompt in plan.prompts]
    return Size(
        prompt_tokens=sum(num_prompt for num_prompt, _ in lengths),
        max_new_tokens=max(1, *(num_new for _, num_new in lengths)),
        max_len=max(map(_least_len, plan.prompts)),
        num_sequences=len(plan.prompts) * plan.num_sampled,
    )


def _least_len(prompt: PromptPlan) -> int:
    """Tokens for which an engine must have room."""
    num_new = prompt.params.max_tokens or 0
    return len(prompt.token_ids) + (min(1, num_new) if prompt.may_shorten else num_new)


def _session(plan: GenerationPlan) -> tuple[int, ...]:
    """What the requests of a conversation have in common: the first block, whose KV the last route may hold."""
    return tuple(plan.prompts[0].token_ids[:BLOCK_SIZE])


def _listed(reasons: dict[Route, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
