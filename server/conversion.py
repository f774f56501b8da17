"""`distllm convert`: writes a checkpoint for several ranks, or back; compares a converted one with its hashes."""

import sys
from pathlib import Path

from distllm.engine.byte_size import byte_size
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.child_program import Refusal
from distllm.engine.conversion.descriptor import read_descriptor
from distllm.engine.conversion.manifest import verify
from distllm.engine.conversion.report import ConversionRequest, run_conversion
from distllm.engine.hub import ModelNotFound, resolve
from distllm.server.config import InvalidSettings


def convert(model: str, out: Path | None, size: int | None) -> int:
    """Convert and say where the descriptor is. Returns the exit status."""
    if out is None:
        raise InvalidSettings("convert needs two places: distllm convert IN OUT --tensor-parallel-size N")
    if size is None:
        raise InvalidSettings(
            "convert needs --tensor-parallel-size: how many ranks to write for; 1 writes one file"
        )
    if size < 1:
        raise InvalidSettings(f"--tensor-parallel-size must be at least 1, not {size}")
    try:
        path = Path(model).expanduser()
        source = path if path.exists() else resolve(model)
    except ModelNotFound as error:
        return _fail(str(error))
    result = run_conversion(ConversionRequest(str(source), str(out), size))
    if isinstance(result, Refusal):
        return _fail(result.reason)
    sys.stdout.write(f"{result.descriptor}\nserve it with `distllm serve {out}`\n")
    return 0


def verify_converted(directory: Path) -> int:
    """Compare every file with the manifest. Returns the exit status."""
    try:
        manifest = verify(read_descriptor(directory).directory)
    except CheckpointError as error:
        return _fail(str(error))
    num_bytes = sum(record.num_bytes for record in manifest.files.values())
    sys.stdout.write(
        f"{directory}: {len(manifest.files)} files, {byte_size(num_bytes)}, all as they were written\n"
    )
    return 0


def _fail(reason: str) -> int:
    sys.stderr.write(f"distllm: {reason}\n")
    return 1
