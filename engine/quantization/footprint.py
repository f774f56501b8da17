"""Bytes that a checkpoint's weights will take once quantized, told from its headers. Importable without torch."""

from distllm.engine.checkpoint import Checkpoint, StoredTensor
from distllm.engine.quantization.config import QuantizationConfig, WeightScheme
from distllm.engine.quantization.naming import is_mlp, is_router

_TIED_HEADS = ("lm_head.weight", "embed_out.weight")
_POSITIONS = ("wpe.weight", "embed_positions.weight")


def served_tensors(checkpoint: Checkpoint) -> list[StoredTensor]:
    """What will be in memory: a tied output head that is stored as well counts once."""
    is_tied = bool(checkpoint.text_config.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings")))
    return [tensor for name, tensor in checkpoint.tensors.items() if not (is_tied and name in _TIED_HEADS)]


def weight_bytes(checkpoint: Checkpoint, config: QuantizationConfig | None, element_bytes: int) -> int:
    """Of all weights in a type of `element_bytes`, quantized as `config` says."""
    vocab_size = checkpoint.text_config.get("vocab_size")
    return sum(
        tensor.num_elements * element_bytes
        if config is None or (scheme := _scheme(tensor, config, vocab_size)) is None
        else _scheme_bytes(tensor, scheme, element_bytes)
        for tensor in served_tensors(checkpoint)
    )


def _scheme(tensor: StoredTensor, config: QuantizationConfig, vocab_size: object) -> WeightScheme | None:
    module = tensor.name.removesuffix(".weight")
    if len(tensor.shape) < 2 or tensor.name.endswith(("_bias", *_POSITIONS)) or is_router(module):
        return None
    if vocab_size in tensor.shape:
        return config.vocabulary
    return config.mlp if is_mlp(module) else config.linear


def _scheme_bytes(tensor: StoredTensor, scheme: WeightScheme, element_bytes: int) -> int:
    num_groups = tensor.num_elements // (scheme.group_size or tensor.shape[-1])
    group_bytes = min(element_bytes, 4) + (not scheme.symmetric)
    return tensor.num_elements * scheme.bits // 8 + num_groups * group_bytes
