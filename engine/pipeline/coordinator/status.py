"""The pipeline of the moment, for whoever looks on."""

from dataclasses import dataclass

from distllm.engine.pipeline.coordinator.routes import Route
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.placement.prediction import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """`stages` are the present ones, or the last, each with the way to it in `routes`; `epoch` is None before the
    first.

    `waiting` says why none fits, `predicted` what the present ones should give, None where that is not known. KV
    of `rebuilt_tokens_total` tokens was computed anew after losses.
    """

    stages: list[Stage]
    routes: list[Route]
    epoch: int | None
    is_serving: bool
    waiting: str | None
    predicted: Prediction | None
    num_in_flight: int
    rebuilt_tokens_total: int
