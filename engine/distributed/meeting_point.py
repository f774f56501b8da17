"""Where the ranks of a host find each other: a file for torch.distributed, of which nothing is left by a kill."""

import os
import tempfile

from distllm.engine.distributed.shared_bytes import create_descriptor


class MeetingPoint:
    """A file that every process of this user can open while this process has it. Close it."""

    def __init__(self) -> None:
        self._descriptor = self._directory = None
        if hasattr(os, "memfd_create"):
            self._descriptor = create_descriptor()
            self.url = f"file:///proc/{os.getpid()}/fd/{self._descriptor}"
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="distllm-ranks-")
            self.url = f"file://{self._directory.name}/meeting-point"

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._directory is not None:
            self._directory.cleanup()
