"""The answer of /v1/route/explain, as msgspec Structs."""

import msgspec


class RouteTarget(msgspec.Struct, frozen=True):
    """What requests should not exceed; null asks for nothing."""

    ttft_s: float | None
    tpot_s: float | None


class RoutePrediction(msgspec.Struct, frozen=True):
    """Of this request on one route: `queue_s` until it begins, the rest in all.

    `machine_s` is its cost: `num_machines` by the seconds that they are busy.
    """

    meets_target: bool
    queue_s: float
    ttft_s: float
    tpot_s: float
    total_s: float
    machine_s: float


class RouteReport(msgspec.Struct, frozen=True, kw_only=True):
    """A route. `prediction` is null where it cannot run the request now, which `unavailable` says why.

    `is_measured` says whether predictions rest on measurements. Routes of equal `numerics` give equal tokens.
    `num_live` sequences run or wait; `max_model_len` is the longest that it takes.
    """

    route: str
    unavailable: str | None
    prediction: RoutePrediction | None
    prefill_tokens_per_s: float
    is_measured: bool
    num_machines: int
    num_live: int
    num_running: int
    num_waiting: int
    max_model_len: int | None
    numerics: str | None


class RouteExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where the request would go; `route` is null where nothing takes it, `why` is the class of the reason."""

    object: str
    route: str | None
    why: str | None
    reason: str
    prompt_tokens: int
    max_tokens: int
    num_sequences: int
    target: RouteTarget
    routes: list[RouteReport]
