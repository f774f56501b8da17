"""Memory that several processes see: a file without a name, whose descriptor a child inherits.

Its size is not bounded by /dev/shm, which containers keep small, and nothing of it is left behind by a kill.
"""

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray


def create_descriptor() -> int:
    """A descriptor of new, empty shared memory. The caller closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("distllm")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def map_bytes(descriptor: int, num_bytes: int) -> NDArray[np.uint8]:
    """The first `num_bytes` of shared memory, which grows to that size; pages are taken when they are touched."""
    if os.fstat(descriptor).st_size < num_bytes:
        os.ftruncate(descriptor, num_bytes)
    return np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8)
