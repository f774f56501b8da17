"""Memory of the host, at once a tensor and bytes to read into."""

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.offload.disk_file import pages

_HUGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Buffer:
    """`content` is uint8 [num_bytes], `host` the same memory; both are of whole pages."""

    content: Tensor
    host: memoryview


def host_buffer(num_bytes: int) -> Buffer:
    """Memory from a page boundary on, of huge pages where it is large enough for them and the system has some."""
    memory = mmap.mmap(-1, pages(num_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= _HUGE_PAGE_BYTES:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return Buffer(torch.frombuffer(memory, dtype=torch.uint8), memoryview(memory))
