"""What a conversion is asked and what it answers. Importable without torch."""

import msgspec

from distllm.engine.child_program import Refusal, ask


class ConversionRequest(msgspec.Struct, frozen=True):
    """As convert_checkpoint_to_deepspeed takes it."""

    checkpoint_path: str
    output_path: str
    tensor_parallel_size: int


class Converted(msgspec.Struct, frozen=True, tag=True):
    """The path of the descriptor."""

    descriptor: str


def run_conversion(request: ConversionRequest) -> Converted | Refusal:
    """Convert in a process of its own, which shows its progress on stderr."""
    return ask("distllm.engine.conversion.program", request, Converted)
