"""DeepSpeed's asynchronous I/O as a way of reading a DiskFile, where it is built. Imports deepspeed when asked."""

import contextlib
import ctypes.util
import errno
import importlib.util
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distllm.engine.offload.disk_file import DiskFile

_BLOCK_BYTES = 1 << 20
_QUEUE_DEPTH = 32
_NUM_THREADS = 4
_BUILD = "python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder as B; B().load()'"


@dataclass(frozen=True, slots=True)
class AioUnavailable:
    """Why there is no asynchronous I/O here."""

    reason: str


class AioReader:
    """Reads by DeepSpeed's handle: requests of the kernel's libaio, from several threads."""

    name = "DeepSpeed's asynchronous I/O"

    def __init__(self, file: DiskFile, handle: Any) -> None:
        self._path = str(file.path)
        self._handle = handle

    def read(self, buffer: memoryview, offset: int) -> None:
        done = self._handle.sync_pread(torch.frombuffer(buffer, dtype=torch.uint8), self._path, offset)
        if done != 1:  # the number of operations that ended
            raise OSError(errno.EIO, f"DeepSpeed's asynchronous I/O cannot read the layers at byte {offset}")

    def close(self) -> None:
        """The handle's threads end with it."""
        self._handle = None


def open_aio(file: DiskFile) -> AioReader | AioUnavailable:
    """A reader of `file`, or what is missing. Never builds the operation, which takes a compiler minutes."""
    if not file.is_direct:
        return AioUnavailable(f"{file.directory} is on a file system without O_DIRECT")
    if ctypes.util.find_library("aio") is None:
        return AioUnavailable("libaio is not installed")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return AioReader(file, _open_handle())
    except Exception as error:  # whatever a build of another version or machine makes of it
        return AioUnavailable((str(error).strip() or type(error).__name__).splitlines()[0])


def _open_handle() -> Any:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    if not _is_built(builder.absolute_name()):
        raise RuntimeError(f"the operation is not built, which `{_BUILD}` does")
    operations = builder.load(verbose=False)
    return operations.aio_handle(_BLOCK_BYTES, _QUEUE_DEPTH, False, True, _NUM_THREADS)


def _is_built(module: str) -> bool:
    """Whether the operation came with DeepSpeed or was built by an earlier `load`."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    built = (*root.glob("async_io/async_io.so"), *root.glob("*/async_io/async_io.so"))
    return bool(built) or importlib.util.find_spec(module) is not None
