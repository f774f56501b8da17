"""A safetensors file whose tensors arrive in pieces, in any order."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from distllm.engine.durable import locked, sync
from distllm.engine.pipeline.weights.manifest import TensorRecord
from distllm.engine.pipeline.weights.tensor_place import TensorPlace
from distllm.engine.quantization.safetensors_writer import PlannedTensor, encode_header


class UnfinishedShard:
    """Becomes the file `path` when it is finished; until then it has a hidden name beside it.

    `places` are where its tensors are read while it is unfinished. Get one with `begin_shard`.
    """

    def __init__(self, path: Path, unfinished: Path, descriptor: int, tensors: Mapping[str, TensorRecord]) -> None:
        self.places: dict[str, TensorPlace] = {}
        self._path = path
        self._unfinished = unfinished
        self._descriptor = descriptor
        stored = [record.in_file(name, unfinished) for name, record in tensors.items()]
        planned = [PlannedTensor(it.name, it.dtype, it.shape, it.num_bytes) for it in stored]
        header = encode_header(planned, {"format": "pt"})
        begin = len(header)
        for tensor in stored:
            self.places[tensor.name] = TensorPlace(tensor, begin)
            begin += tensor.num_bytes
        self.write(0, header)

    def write(self, begin: int, content: bytes) -> None:
        """Put `content` at `begin` of the file. Raises OSError, in words."""
        left = memoryview(content)
        with self._named():
            while left:
                num_written = os.pwrite(self._descriptor, left, begin)
                begin, left = begin + num_written, left[num_written:]

    def finish(self) -> None:
        """Have the file appear, on disk. Raises OSError, in words."""
        with self._named():
            os.fsync(self._descriptor)
            os.replace(self._unfinished, self._path)
            sync(self._path.parent)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"weights cannot be kept in {self._path.parent}: {error.strerror}; make room there, or name "
                "another folder with --cache"
            ) from None


@contextlib.contextmanager
def begin_shard(path: Path, tensors: Mapping[str, TensorRecord]) -> Iterator[UnfinishedShard]:
    """A shard with `tensors`, in this order; it is gone with the block unless it is finished.

    Removes what killed processes left in the same directory, not what living ones are writing. Raises OSError.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with locked(path.parent):
        for left in path.parent.glob(".*.safetensors.*"):
            _remove_abandoned(left)
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield UnfinishedShard(path, unfinished, descriptor, tensors)
    finally:
        unfinished.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_abandoned(left: Path) -> None:
    """Remove a file that no living process has locked."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left.unlink()
