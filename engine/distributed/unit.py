"""How many features of an MLP stay together on a rank, so that no group of quantized weights is cut."""

from distllm.engine.checkpoint import Checkpoint
from distllm.engine.conversion.rank_checkpoint import RankCheckpoint
from distllm.engine.distributed.sharding import INNER_UNIT
from distllm.engine.quantization.config import GROUP_SIZES, QuantizationConfig


def inner_unit(checkpoint: Checkpoint, quantization: QuantizationConfig | None) -> int:
    """Whole groups of weights that are stored quantized, or that `quantization` will make.

    A checkpoint that was divided before keeps its division.
    """
    if checkpoint.quantization is not None:
        return max(GROUP_SIZES)
    if quantization is None or isinstance(checkpoint, RankCheckpoint):
        return INNER_UNIT
    return max(INNER_UNIT, quantization.group_size or INNER_UNIT)
