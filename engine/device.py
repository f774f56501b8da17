"""Resolves `auto` to a device and a number type."""

import torch

from distllm.engine.checkpoint import Checkpoint, CheckpointError
from distllm.engine.config import DeviceName, DtypeName

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED_DTYPES = {"F32": torch.float32, "F64": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def resolve_device(name: DeviceName) -> torch.device:
    """The first CUDA device where there is one, else the CPU. Raises ValueError for a CUDA that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def resolve_dtype(name: DtypeName, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`auto` keeps the type in which most of the weights are stored; on a CPU float16 becomes bfloat16."""
    if name != "auto":
        return _DTYPES[name]
    num_bytes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
    stored = max(num_bytes, key=lambda dtype: num_bytes[dtype])
    if stored not in _STORED_DTYPES:
        raise CheckpointError(
            f"{checkpoint.path} stores its weights as {stored}; float32, bfloat16 and float16 are served"
        )
    dtype = _STORED_DTYPES[stored]
    return torch.bfloat16 if dtype == torch.float16 and device.type == "cpu" else dtype
