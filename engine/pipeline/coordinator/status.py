"""The pipeline of the moment, for whoever looks on."""

from dataclasses import dataclass

from distllm.engine.pipeline.coordinator.routes import Route
from distllm.engine.pipeline.coordinator.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """`stages` are the present ones, or the last, each with the way to it in `routes`; `epoch` is None before the
    first.

    `waiting` says why none fits. The KV of `rebuilt_tokens_total` tokens was computed anew after losses.
    """

    stages: list[Stage]
    routes: list[Route]
    epoch: int | None
    is_serving: bool
    waiting: str | None
    num_in_flight: int
    rebuilt_tokens_total: int
