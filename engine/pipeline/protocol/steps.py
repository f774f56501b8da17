"""What coordinator and stages tell each other of a step."""

from dataclasses import dataclass

from distllm.engine.interface import StepInput

Work = tuple[StepInput, int, int]
"""A step, the first stage that computes it, and the last."""


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A step with its place in the order in which every stage applies the steps of an epoch.

    `is_rebuild` marks one that gives stages KV of tokens that were computed before; nothing is sampled then. Stages
    `first_stage` to `last_stage` compute it, from what the stage before them has logged. All others
    pass it on, and the last of all answers the coordinator.
    """

    epoch: int
    number: int
    step: StepInput
    first_stage: int
    last_stage: int
    is_rebuild: bool = False
