"""Which number type a checkpoint is served in. Importable without torch; types go by torch's names."""

from collections.abc import Mapping

from distllm.engine.checkpoint import Checkpoint, CheckpointError
from distllm.engine.config import DtypeName

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

_STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def resolve_dtype(name: DtypeName, checkpoint: Checkpoint, device_type: str) -> str:
    """`auto` keeps the type in which most of the weights are stored; on a CPU float16 becomes bfloat16."""
    if name != "auto":
        return name
    num_bytes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
    stored = max(num_bytes, key=lambda dtype: num_bytes[dtype])
    if stored not in _STORED:
        raise CheckpointError(f"{checkpoint.path} stores its weights as {stored}, which is not a floating type")
    dtype = _STORED[stored]
    return "bfloat16" if dtype == "float16" and device_type == "cpu" else dtype
