"""What an evaluation is asked and what it answers. Importable without torch."""

import subprocess
import sys

import msgspec

from distllm.engine.config import EngineConfig


class EvaluationRequest(msgspec.Struct, frozen=True):
    """Windows of at least two token ids, each run from an empty cache."""

    model: EngineConfig
    against: EngineConfig | None
    windows: list[list[int]]


class Evaluation(msgspec.Struct, frozen=True, tag=True):
    """Means over `num_tokens` predicted tokens. The last three are None where there is nothing to compare with.

    `divergence` is the Kullback-Leibler divergence of the model from the one it is compared with, in nats a token;
    `agreement` the part of the tokens where both have the same most likely one.
    """

    num_tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    divergence: float | None = None
    agreement: float | None = None


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why nothing was evaluated, in one line."""

    reason: str


def run_evaluation(request: EvaluationRequest) -> Evaluation | Refusal:
    """Evaluate in a process of its own."""
    command = [sys.executable, "-m", "distllm.engine.evaluation"]
    run = subprocess.run(command, input=msgspec.json.encode(request), stdout=subprocess.PIPE)
    if run.returncode:
        return Refusal(f"the evaluation ended with status {run.returncode}; its output above says why")
    return msgspec.json.decode(run.stdout, type=Evaluation | Refusal)
