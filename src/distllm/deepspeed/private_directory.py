"""A temporary directory for small files that goes with the process, however the process ends."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_GUARD = ("/bin/sh", "-c", 'read _; rm -rf -- "$0"')
"""Waits for the end of its input, which comes with the end of the process that holds the other end, and removes."""


class PrivateDirectory:
    """A new directory that only this user reads. Close it; a shell removes it if this process is killed before."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.path = Path(tempfile.mkdtemp(prefix="distllm-model-"))
        self._guard = _start_guard(self.path)

    def close(self) -> None:
        """Remove the directory. Does nothing the second time, nor in a forked child of the process that made it."""
        if os.getpid() != self._pid:
            return
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()
        shutil.rmtree(self.path, ignore_errors=True)


def _start_guard(path: Path) -> "subprocess.Popen[bytes] | None":
    """None where there is no shell: then only `close` removes the directory."""
    try:
        return subprocess.Popen(
            [*_GUARD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )
    except OSError:
        return None
