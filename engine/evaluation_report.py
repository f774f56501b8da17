"""What an evaluation is asked and what it answers. Importable without torch."""

import msgspec

from distllm.engine.child_program import Refusal, ask
from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.wire.codec_names import CodecName


class StagesRequest(msgspec.Struct, frozen=True):
    """To run a model over stages in one process, between which activations are sent in `codec`."""

    num_stages: int
    codec: CodecName


class EvaluationRequest(msgspec.Struct, frozen=True):
    """Windows of at least two token ids, each run from an empty cache.

    With `stages`, the model over these is compared with the same stages without a codec, and `against` is None.
    """

    model: EngineConfig
    against: EngineConfig | None
    windows: list[list[int]]
    stages: StagesRequest | None = None


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


def run_evaluation(request: EvaluationRequest) -> Evaluation | Refusal:
    """Evaluate in a process of its own."""
    return ask("distllm.engine.evaluation", request, Evaluation)
