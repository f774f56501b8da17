"""Which number type a checkpoint is served in. Importable without torch; types go by torch's names."""

from collections.abc import Mapping

from distllm.engine.checkpoint import Checkpoint, CheckpointError
from distllm.engine.config import DtypeName

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

_STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def resolve_dtype(name: DtypeName, checkpoint: Checkpoint, device_type: str) -> str:
    """`auto` keeps the type in which most of the weights are stored; on a CPU float16 becomes bfloat16.

    Of a quantized checkpoint that is the type of what is not quantized, and of scales.
    """
    if name != "auto":
        return name
    num_bytes: dict[str, int] = {}
    is_quantized = checkpoint.quantization is not None
    for tensor in checkpoint.tensors.values():
        if is_quantized and tensor.dtype not in _STORED:
            continue
        num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
    stored = max(num_bytes, key=lambda dtype: num_bytes[dtype], default="no floats")
    if stored not in _STORED:
        raise CheckpointError(f"{checkpoint.path} stores its weights as {stored}, which is not a floating type")
    dtype = _STORED[stored]
    return "bfloat16" if dtype == "float16" and device_type == "cpu" else dtype
