"""How the weights of an engine are quantized, by the checkpoint or while they load. Importable without torch."""

from distllm.engine.checkpoint import Checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.quantization.config import QuantizationConfig, QuantizationError


def quantization_name(checkpoint: Checkpoint, config: QuantizationConfig | None) -> str | None:
    """Such as w4g32 or gptq-w4, None for dense weights.

    Raises QuantizationError where quantized weights were to be quantized again.
    """
    stored = checkpoint.quantization
    if stored is not None and config is not None:
        raise QuantizationError(
            f"{checkpoint.path} is quantized already ({stored.name}) and cannot be quantized again: "
            "leave --quantization out"
        )
    if stored is not None:
        return stored.name
    return None if config is None else config.name


def numerics_family(checkpoint: Checkpoint, config: EngineConfig) -> str:
    """What is added to the name of an engine's numerics. Raises as quantization_name does."""
    if config.layer_quantization:
        for run in config.layer_quantization:
            quantization_name(checkpoint, run.config)
        weights: str | None = "+".join(run.name for run in config.layer_quantization)
    else:
        weights = quantization_name(checkpoint, config.quantization)
    kv = None if config.kv_cache_dtype == "auto" else f"kv{config.kv_cache_dtype}"
    return "".join(f"/{name}" for name in (weights, kv) if name is not None)
