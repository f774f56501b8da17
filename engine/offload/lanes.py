"""How a layer's bytes get from where they are kept to where they are used."""

from typing import Any, Protocol

from torch import Tensor

from distllm.engine.offload.disk_file import DiskFile
from distllm.engine.offload.host_buffer import Buffer, host_buffer
from distllm.engine.offload.layer_tensors import LayerTensors, content_bytes
from distllm.engine.offload.reader_choice import choose_reader
from distllm.engine.offload.readers import Reader


class Lane(Protocol):
    """Keeps layers and fetches them. `fill` runs beside the computation, everything else in its thread."""

    @property
    def name(self) -> str:
        """Where layers come from, once `start` was called."""

    def keep(self, tensor: Tensor) -> int:
        """Store a tensor's content behind what is stored already; returns where it begins."""

    def start(self) -> None:
        """Everything is kept: get ready to fetch."""

    def drop(self, layer: LayerTensors) -> None:
        """A layer that was fetched stays where it computes, and need not be kept."""

    def allocate(self, num_bytes: int) -> Any:
        """A buffer that `fill` can fill with `num_bytes`."""

    def fill(self, buffer: Any, layer: LayerTensors) -> None:
        """Bring a layer into the buffer. Raises OSError."""

    def begin_use(self, buffer: Any) -> Tensor:
        """What `fill` brought, uint8 on the device that computes."""

    def end_use(self, buffer: Any) -> None:
        """What was begun with the buffer may still run; `fill` waits for it."""

    def close(self) -> None:
        """Give up files and threads."""


class DiskLane:
    """From a file on disk to the memory of a CPU."""

    name = "disk"

    def __init__(self, file: DiskFile) -> None:
        self._file = file
        self._reader: Reader | None = None

    def keep(self, tensor: Tensor) -> int:
        return self._file.append(content_bytes(tensor))

    def start(self) -> None:
        self._reader = choose_reader(self._file)
        self.name = f"disk by {self._reader.name}"

    def drop(self, layer: LayerTensors) -> None:
        """The disk has room."""

    def allocate(self, num_bytes: int) -> Buffer:
        return host_buffer(num_bytes)

    def fill(self, buffer: Buffer, layer: LayerTensors) -> None:
        assert self._reader is not None
        self._reader.read(buffer.host[: layer.num_bytes], layer.begin)

    def begin_use(self, buffer: Buffer) -> Tensor:
        return buffer.content

    def end_use(self, buffer: Buffer) -> None:
        """Nothing runs on a CPU once its call has returned."""

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._file.close()
