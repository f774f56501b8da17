"""The Python API, under DeepSpeed's names: a transformers model in, an engine on several ranks out.

    engine = optimize_with_deepspeed(model=model, tokenizer=tokenizer, tensor_parallel_size=2)
    print(engine.generate("DeepSpeed is", max_new_tokens=50))

Importing this package alone loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distllm.deepspeed.config import DeepSpeedConfig
    from distllm.deepspeed.engine import InferenceEngine
    from distllm.deepspeed.entry import init_inference, optimize_with_deepspeed

HOMES = {
    "DeepSpeedConfig": "config",
    "InferenceEngine": "engine",
    "init_inference": "entry",
    "optimize_with_deepspeed": "entry",
}
"""Where each public name lives."""

__all__ = ["DeepSpeedConfig", "InferenceEngine", "init_inference", "optimize_with_deepspeed"]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
