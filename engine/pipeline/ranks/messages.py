"""What a peer and the first rank of one of its stages tell each other. Every message is one frame."""

from typing import TypeVar

import msgspec
from torch import Tensor

from distllm.engine.config import EngineConfig
from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pipeline.wire.frame import decode_frame, encode_frame

_KIND = 1
_NO_LIMIT = 1 << 62  # of messages between two processes that trust each other


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Any of them."""


# From the peer to the first rank, one at a time.


class LoadStage(Message, frozen=True, kw_only=True):
    """The first: load `layers`, over `config.tensor_parallel_size` ranks."""

    config: EngineConfig
    layers: LayerRange
    log_level: str


class AllocatePool(Message, frozen=True, kw_only=True):
    """Have a KV pool of so many blocks."""

    num_blocks: int


class RunStep(Message, frozen=True, kw_only=True):
    """Compute a step, from the activations that come with it unless none do, and sample if asked to."""

    step: StepInput
    samples: bool


class TimeLayer(Message, frozen=True, kw_only=True):
    """Time the layer that the stage consists of, and the head."""

    budget_s: float


# From the first rank to the peer: one answer to each, and any number of Progress before it.


class Progress(Message, frozen=True, kw_only=True):
    """How far loading is, from 0 to 1."""

    activity: str
    done: float


class StageLoaded(Message, frozen=True, kw_only=True):
    """The stage is ready."""

    info: ExecutorInfo


class Done(Message, frozen=True, kw_only=True):
    """There is a pool; or a step was computed, and the activations are here unless the stage is the last."""


class Sampled(Message, frozen=True, kw_only=True):
    """What the last stage made of a step."""

    output: StepOutput


class Timed(Message, frozen=True, kw_only=True):
    """What was measured."""

    times: ComputeTimes


class Failed(Message, frozen=True, kw_only=True):
    """The first rank cannot go on, and ends; `reason` is for the operator."""

    reason: str


T = TypeVar("T")
ToFirstRank = LoadStage | AllocatePool | RunStep | TimeLayer
ToPeer = Progress | StageLoaded | Done | Sampled | Timed | Failed
_decode_request = msgspec.msgpack.Decoder(ToFirstRank)
_decode_answer = msgspec.msgpack.Decoder(ToPeer)


def encode(message: ToFirstRank | ToPeer, tensor: Tensor | None = None) -> bytes:
    """`tensor` is on any device."""
    return b"".join(encode_frame(_KIND, message, [] if tensor is None else [tensor]))


def decode_request(frame: bytes) -> tuple[ToFirstRank, Tensor | None]:
    return _decode(frame, _decode_request)


def decode_answer(frame: bytes) -> tuple[ToPeer, Tensor | None]:
    return _decode(frame, _decode_answer)


def _decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> tuple[T, Tensor | None]:
    frame = decode_frame(body, _NO_LIMIT)
    return frame.header(decoder), frame.tensors[0] if frame.tensors else None
