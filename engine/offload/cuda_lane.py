"""From the host to a GPU, copied beside the computation; events keep the two in order.

A layer that `fill` has brought is there, so that no rank of several waits for a copy where it cannot say so.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.offload.errors import OffloadError
from distllm.engine.offload.host_buffer import Buffer
from distllm.engine.offload.layer_tensors import LayerTensors
from distllm.engine.offload.sources import Source


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """Room for a layer on the GPU: uint8 [num_bytes]. `used` follows the last kernel that reads what is there."""

    content: Tensor
    filled: torch.cuda.Event
    used: torch.cuda.Event


class CudaLane:
    """Copies on a stream of its own, which waits for what a buffer's last layer still computes."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._copies: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def keep(self, tensor: Tensor) -> int:
        return self._source.keep(tensor)

    @property
    def name(self) -> str:
        return self._source.name

    def start(self) -> None:
        self._source.start()

    def drop(self, layer: LayerTensors) -> None:
        self._copies.synchronize()
        self._source.drop(layer)

    def allocate(self, num_bytes: int) -> DeviceBuffer:
        content = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return DeviceBuffer(content, make_event(), make_event())

    def fill(self, buffer: DeviceBuffer, layer: LayerTensors) -> None:
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(buffer.used)
            self._source.copy_to(buffer.content, layer)
            buffer.filled.record(self._copies)
        buffer.filled.synchronize()  # who takes the layer waits in the ring, where a rank shows that it goes on

    def begin_use(self, buffer: DeviceBuffer) -> Tensor:
        torch.cuda.current_stream(self._device).wait_event(buffer.filled)
        return buffer.content

    def end_use(self, buffer: DeviceBuffer) -> None:
        buffer.used.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        self._copies.synchronize()
        self._source.close()


def make_event() -> torch.cuda.Event:
    """An event that was not recorded yet, for which nobody waits."""
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def pin(buffer: Buffer) -> None:
    """Lock a buffer in place for as long as it lives. Raises OffloadError where the driver refuses."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = buffer.content.data_ptr()
    status = int(runtime.cudaHostRegister(address, buffer.content.nbytes, 0))
    if status != 0:
        raise OffloadError(
            f"the driver pins no more of the host's memory (CUDA error {status}): "
            "use --offload disk or give the process more memory"
        )
    weakref.finalize(buffer, runtime.cudaHostUnregister, address)
