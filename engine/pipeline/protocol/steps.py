"""What coordinator and stages tell each other of a step."""

from dataclasses import dataclass

from distllm.engine.interface import StepInput


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A step with its place in the order in which every stage applies the steps of an epoch.

    Stages 0 to `last_stage` compute it, any after that pass it on, and the last of all answers the coordinator.
    `is_rebuild` marks one that gives stages the KV of tokens that were computed before; nothing is sampled then.
    """

    epoch: int
    number: int
    last_stage: int
    step: StepInput
    is_rebuild: bool = False
