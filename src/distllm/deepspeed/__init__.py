"""The Python API, under DeepSpeed's names: a transformers model in, an engine on several ranks out.

    engine = optimize_with_deepspeed(model=model, tokenizer=tokenizer, tensor_parallel_size=2)
    print(engine.generate("DeepSpeed is", max_new_tokens=50))

Importing this package alone loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distllm.deepspeed.availability import Availability, is_deepspeed_available
    from distllm.deepspeed.config import DeepSpeedConfig
    from distllm.deepspeed.coordinator_client import CoordinatorClient
    from distllm.deepspeed.engine import InferenceEngine
    from distllm.deepspeed.entry import init_inference, optimize_with_deepspeed
    from distllm.deepspeed.hybrid_inference import HybridInference
    from distllm.deepspeed.memory_advice import OutOfMemory
    from distllm.deepspeed.model_inference import ModelInference
    from distllm.deepspeed.refusal import InvalidOption
    from distllm.engine.reference_block import ShardedConfig, ShardedForCausalLM, ShardedTransformerBlock

_HOMES = {
    "Availability": "deepspeed.availability",
    "CoordinatorClient": "deepspeed.coordinator_client",
    "DeepSpeedConfig": "deepspeed.config",
    "HybridInference": "deepspeed.hybrid_inference",
    "InferenceEngine": "deepspeed.engine",
    "InvalidOption": "deepspeed.refusal",
    "ModelInference": "deepspeed.model_inference",
    "OutOfMemory": "deepspeed.memory_advice",
    "ShardedConfig": "engine.reference_block",
    "ShardedForCausalLM": "engine.reference_block",
    "ShardedTransformerBlock": "engine.reference_block",
    "init_inference": "deepspeed.entry",
    "is_deepspeed_available": "deepspeed.availability",
    "optimize_with_deepspeed": "deepspeed.entry",
}
"""The module of each public name."""

__all__ = [
    "Availability",
    "CoordinatorClient",
    "DeepSpeedConfig",
    "HybridInference",
    "InferenceEngine",
    "InvalidOption",
    "ModelInference",
    "OutOfMemory",
    "ShardedConfig",
    "ShardedForCausalLM",
    "ShardedTransformerBlock",
    "init_inference",
    "is_deepspeed_available",
    "optimize_with_deepspeed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"distllm.{_HOMES[name]}"), name)
