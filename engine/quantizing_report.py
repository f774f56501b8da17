"""What quantizing a checkpoint is asked and what it answers. Importable without torch."""

import msgspec

from distllm.engine.child_program import Refusal, ask
from distllm.engine.quantization.config import QuantizationConfig


class QuantizeRequest(msgspec.Struct, frozen=True):
    """Both are directories; `out` must not exist."""

    path: str
    out: str
    config: QuantizationConfig


class Quantized(msgspec.Struct, frozen=True, tag=True):
    """Bytes of all tensors."""

    before_bytes: int
    after_bytes: int


def run_quantizing(request: QuantizeRequest) -> Quantized | Refusal:
    """Quantize in a process of its own."""
    return ask("distllm.engine.quantizing", request, Quantized)
