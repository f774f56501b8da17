"""DistributedLLM: the OpenAI-compatible inference server for whatever hardware you have.

`from distllm import LLM, SamplingParams` runs offline batches; importing the package alone loads nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distllm.engine.sampling_params import SamplingParams
    from distllm.server.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> Any:
    match name:
        case "LLM":
            from distllm.server.llm import LLM

            return LLM
        case "SamplingParams":
            from distllm.engine.sampling_params import SamplingParams

            return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
