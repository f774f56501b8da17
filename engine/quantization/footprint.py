"""Bytes that a checkpoint's weights will take once quantized, told from its headers. Importable without torch."""

from collections.abc import Mapping

from distllm.engine.checkpoint import Checkpoint, StoredTensor
from distllm.engine.quantization.config import QuantizationConfig, WeightScheme
from distllm.engine.quantization.naming import is_mlp, is_router
from distllm.engine.quantization.stored import FIELDS

_FLOATS = ("F64", "F32", "BF16", "F16")
_TIED_HEADS = ("lm_head.weight", "embed_out.weight")
_POSITIONS = ("wpe.weight", "embed_positions.weight")


def served_tensors(checkpoint: Checkpoint) -> list[StoredTensor]:
    """What will be in memory: a tied output head that is stored as well counts once."""
    is_tied = bool(checkpoint.text_config.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings")))
    return [tensor for name, tensor in checkpoint.tensors.items() if not (is_tied and name in _TIED_HEADS)]


def count_parameters(checkpoint: Checkpoint) -> int:
    """Weights that will be in memory, each once however it is stored; scales and zero points are none."""
    stored = checkpoint.quantization
    if stored is None:
        return sum(tensor.num_elements for tensor in served_tensors(checkpoint))
    marker, *others = FIELDS[stored.format]
    beside = tuple(f".{field}" for field in others)
    codes_per_element = {"I32": 32 // stored.bits}
    return sum(
        tensor.num_elements * (codes_per_element.get(tensor.dtype, 1) if tensor.name.endswith(f".{marker}") else 1)
        for tensor in served_tensors(checkpoint)
        if not tensor.name.endswith(beside)
    )


def weight_bytes(checkpoint: Checkpoint, config: QuantizationConfig | None, element_bytes: int) -> int:
    """Of all weights in a type of `element_bytes`, quantized as they are stored or as `config` says."""
    return sum(tensor_bytes(checkpoint, config, element_bytes).values())


def tensor_bytes(
    checkpoint: Checkpoint, config: QuantizationConfig | None, element_bytes: int
) -> Mapping[str, int]:
    """The same by the name of the stored tensor."""
    vocab_size = checkpoint.text_config.get("vocab_size")
    is_stored = checkpoint.quantization is not None
    sizes = {}
    for tensor in served_tensors(checkpoint):
        scheme = None if config is None else _scheme(tensor, config, vocab_size)
        if is_stored and tensor.dtype not in _FLOATS:
            sizes[tensor.name] = tensor.num_bytes
        elif scheme is None:
            sizes[tensor.name] = tensor.num_elements * element_bytes
        else:
            sizes[tensor.name] = _scheme_bytes(tensor, scheme, element_bytes)
    return sizes


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
