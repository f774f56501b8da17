"""Where layers wait that compute on a GPU: the host's memory, or a disk behind it. Both copy from pinned memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from distllm.engine.byte_size import byte_size
from distllm.engine.memory import measure_free_host_bytes
from distllm.engine.offload.disk_file import DiskFile
from distllm.engine.offload.errors import OffloadError
from distllm.engine.offload.host_buffer import Buffer, host_buffer
from distllm.engine.offload.layer_tensors import LayerTensors, content_bytes
from distllm.engine.offload.reader_choice import choose_reader
from distllm.engine.offload.readers import Reader

Pin = Callable[[Buffer], None]
"""Locks a buffer in place, so that a GPU copies from it without the CPU."""

_STAGE_BYTES = 64 << 20
_SPARE_HOST_BYTES = 1 << 30


class Source(Protocol):
    """Stores layers and copies them to a GPU, in the stream that is current."""

    name: str

    def keep(self, tensor: Tensor) -> int:
        """Store a tensor's content behind what is stored already; returns where it begins."""

    def start(self) -> None:
        """Everything is kept: get ready to copy."""

    def copy_to(self, content: Tensor, layer: LayerTensors) -> None:
        """Copy a layer to `content`, uint8 on a device; may return before the copy is done. Raises OSError."""

    def drop(self, layer: LayerTensors) -> None:
        """A layer that was copied is needed no more."""

    def close(self) -> None:
        """Give up files and threads."""


class HostMemory:
    """Pinned memory for every tensor."""

    name = "host memory"

    def __init__(self, pin: Pin) -> None:
        self._pin = pin
        self._stored: dict[int, Buffer] = {}  # by where it begins
        self._num_bytes = 0

    def keep(self, tensor: Tensor) -> int:
        """Raises OffloadError where it would take the last of the host's memory."""
        free_bytes = measure_free_host_bytes()
        if tensor.nbytes > free_bytes - _SPARE_HOST_BYTES:
            raise OffloadError(
                f"the host has {byte_size(free_bytes)} left after {byte_size(self._num_bytes)} of the layers: "
                "use --offload disk"
            )
        begin = self._num_bytes
        buffer = host_buffer(tensor.nbytes)
        buffer.host[: tensor.nbytes] = content_bytes(tensor)
        self._pin(buffer)
        self._stored[begin] = buffer
        self._num_bytes += len(buffer.host)
        return begin

    def start(self) -> None:
        """Memory needs no preparation."""

    def copy_to(self, content: Tensor, layer: LayerTensors) -> None:
        for piece in layer.pieces:
            stored = self._stored[layer.begin + piece.begin].content[: piece.num_bytes]
            content[piece.begin : piece.begin + piece.num_bytes].copy_(stored, non_blocking=True)

    def drop(self, layer: LayerTensors) -> None:
        for piece in layer.pieces:
            del self._stored[layer.begin + piece.begin]

    def close(self) -> None:
        self._stored.clear()


@dataclass(frozen=True, slots=True)
class _Stage:
    """Pinned memory on the way from the disk, and the event after which it may be filled again."""

    buffer: Buffer
    copied: Any


class StagedDisk:
    """A file on disk, read into two pinned buffers in turn: while one is copied to the GPU the other is read."""

    name = "disk"

    def __init__(self, file: DiskFile, pin: Pin, make_event: Callable[[], Any]) -> None:
        self._file = file
        self._reader: Reader | None = None
        self._stages = [_Stage(host_buffer(_STAGE_BYTES), make_event()) for _ in range(2)]
        for stage in self._stages:
            pin(stage.buffer)

    def keep(self, tensor: Tensor) -> int:
        return self._file.append(content_bytes(tensor))

    def start(self) -> None:
        self._reader = choose_reader(self._file)
        self.name = f"disk by {self._reader.name}"

    def copy_to(self, content: Tensor, layer: LayerTensors) -> None:
        assert self._reader is not None
        for number, (begin, end) in enumerate(_parts(layer.num_bytes)):
            stage = self._stages[number % 2]
            stage.copied.synchronize()
            self._reader.read(stage.buffer.host[: end - begin], layer.begin + begin)
            content[begin:end].copy_(stage.buffer.content[: end - begin], non_blocking=True)
            stage.copied.record()

    def drop(self, layer: LayerTensors) -> None:
        """The disk has room."""

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._file.close()


def _parts(num_bytes: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, num_bytes, _STAGE_BYTES):
        yield begin, min(begin + _STAGE_BYTES, num_bytes)
