"""What passes between the first rank and the others in a step."""

from dataclasses import dataclass
from typing import Protocol

from distllm.engine.batch import StepTensors
from distllm.engine.sampling.needed_logits import NeededLogits


@dataclass(frozen=True, slots=True)
class RankResult:
    """What a rank made of a step: a digest of its activations, empty where none is due, and logits.

    Those are of the rank's part of the vocabulary, no more of them than are read.
    """

    digest: bytes
    logits: NeededLogits


class StepExchange(Protocol):
    """The first rank's way to the others, which all compute every step."""

    def send_step(self, batch: StepTensors) -> None:
        """Let all other ranks begin the step. `batch` is in host memory."""

    def receive_results(self, batch: StepTensors, /) -> list[RankResult]:
        """Wait for what they made of that step, in the order of the ranks from 1; valid until the next step."""
