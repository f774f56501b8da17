"""DeepSpeed's all-reduce through shared memory: when it may be used, and how it is brought up safely.

It is ten to a hundred times faster than gloo for a few rows. But it ends the process where LOCAL_SIZE is not
WORLD_SIZE, writes 66 MiB a rank to /dev/shm and leaves them there, and spins while it waits.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_SEGMENT_BYTES = 66 * 2**20 + 4096
_SHARED_MEMORY = Path("/dev/shm")


def why_not(size: int, num_cores: int) -> str | None:
    """Why `size` ranks on this host's `num_cores` do without the shared-memory op; None where they can use it."""
    if sys.platform != "linux" or not _SHARED_MEMORY.is_dir():
        return "this system has no /dev/shm"
    if num_cores < size:
        return f"{size} ranks on {num_cores} cores would spin for each other"
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < size * _SEGMENT_BYTES:
        return (
            f"/dev/shm has {free >> 20} MiB free, and it takes {size * _SEGMENT_BYTES >> 20} (docker: --shm-size)"
        )
    return _why_not_built()


def load_op() -> Any:
    """DeepSpeed's module of the op, built first where that was not done when DeepSpeed was installed (a minute).

    Raises whatever a compiler or a loader has against it.
    """
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    with _exclusive_build_directory(), contextlib.redirect_stdout(io.StringIO()):
        return ShareMemCommBuilder().load(verbose=False)


def _why_not_built() -> str | None:
    try:
        module = load_op()
    except Exception as error:
        return f"it cannot be built: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return None if module.vector_kernel_level() >= 1 else "it needs AVX2"


@contextlib.contextmanager
def _exclusive_build_directory() -> Iterator[None]:
    """Let one process at a time build, in a directory of this installation's own.

    torch's own lock is a file, which outlives a process that is killed while it builds: all later ones would wait
    for ever.
    """
    installation = f"{sys.prefix} {sys.version} {torch.__version__} {version('deepspeed')}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "distllm" / f"ops-{hashlib.sha256(installation.encode()).hexdigest()[:16]}"
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(directory)
    with (directory / "in-use").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left_behind in directory.glob("*/lock"):
            left_behind.unlink()
        yield


def segment_paths(address: str, port: str, size: int) -> list[Path]:
    """The files that the op makes: one a rank."""
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}"
    return [_SHARED_MEMORY / f"{prefix}_{rank}" for rank in range(size)]


def forget_segments(paths: list[Path]) -> None:
    """Remove the names of segments, which live on in the processes that have mapped them."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
