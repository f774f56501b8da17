"""What a resumable stream follows from: with it and the tokens so far it can be gone on with after a restart."""

import msgspec

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.placement.routing import Route
from distllm.server.answer_head import AnswerHead, Endpoint
from distllm.server.generation_plan import GenerationPlan


class ServedModel(msgspec.Struct, frozen=True):
    """Which model answers, as far as can be told; tokens go on only in the one that they came from."""

    name: str
    model_type: str
    dtype: str
    vocab_size: int

    @classmethod
    def of(cls, name: str, info: ExecutorInfo) -> "ServedModel":
        return cls(name, info.model_type, info.dtype, info.vocab_size)


class StreamHead(msgspec.Struct, frozen=True, kw_only=True):
    """`owner` is the digest of the API key that began it, "" where none is asked for. `seeds` has one a prompt.

    It was sent to `route`, which its client wants where it `is_pinned`."""

    request_id: str
    endpoint: Endpoint
    owner: str
    plan: GenerationPlan
    answer: AnswerHead
    seeds: tuple[int, ...]
    arrival_s: float
    served: ServedModel
    numerics: str
    route: Route
    is_pinned: bool

    @property
    def num_choices(self) -> int:
        return len(self.plan.prompts) * self.plan.num_sampled
