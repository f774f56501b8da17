"""Which number type a checkpoint is served in. Importable without torch; types go by torch's names."""

from collections.abc import Mapping
from functools import cache

from distllm.engine.checkpoint import Checkpoint, CheckpointError
from distllm.engine.config import DtypeName
from distllm.engine.kernels.library import KernelLibrary, load_library

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

_STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def resolve_dtype(name: DtypeName, checkpoint: Checkpoint, device_type: str) -> str:
    """`auto` keeps the type in which most of the weights are stored; on a CPU something stands in for float16.

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
    return float16_stand_in(cpu_level()) if dtype == "float16" and device_type == "cpu" else dtype


def float16_stand_in(level: str | None) -> DtypeName:
    """What a CPU computes in instead of float16, for which no kernel here is fast.

    bfloat16 where the kernels of instruction level `level` widen it in vectors: measured, they take a half to three
    quarters of float32's time for 1 row and for 16. Of `portable` 16 rows take one and a half times float32's, and
    plain torch (None) depends on what the processor has.
    """
    return "float32" if level in (None, "portable") else "bfloat16"


@cache
def cpu_level() -> str | None:
    """The best instruction level that this CPU runs and whose kernels are built; None without kernels."""
    library = load_library()
    return library.level if isinstance(library, KernelLibrary) else None
