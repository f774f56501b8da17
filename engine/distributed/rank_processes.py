"""The first rank's hold on the others: starts them, tells them of steps, and notices when one dies or hangs."""

import contextlib
import json
import logging
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from distllm.engine.distributed.arrivals import Arrivals, Stillness, is_waited, laggards
from distllm.engine.distributed.meeting_point import MeetingPoint
from distllm.engine.distributed.rank import STALL_CHECK_S, Descriptors
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.distributed.shared_memory_op import new_name
from distllm.engine.progress import OnLost
from distllm.engine.python_command import python_command

logger = logging.getLogger("distllm.engine")

_STEP = b"step"


class RankProcesses:
    """Processes of the ranks 1 .. size - 1. Close it: nothing of it is left then, nor when this process dies."""

    def __init__(self, size: int, timeout_s: float, on_lost: OnLost) -> None:
        self.size = size
        self.name = new_name()
        self.frame_descriptor = create_descriptor()
        self._meeting_point = MeetingPoint()
        arrivals_descriptor = create_descriptor()
        self.arrivals = Arrivals(arrivals_descriptor, 0, size)
        self._ranks = [_Rank(rank, arrivals_descriptor, self.frame_descriptor) for rank in range(1, size)]
        os.close(arrivals_descriptor)
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._expects_progress = threading.Event()
        self._is_closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_forever, name="watch-ranks", daemon=True)

    @property
    def meeting_point(self) -> str:
        """Where torch.distributed lets the ranks find each other."""
        return self._meeting_point.url

    def start(
        self, config: Mapping[str, Any], membership: Mapping[str, Any], cores: Sequence[frozenset[int]]
    ) -> None:
        """Let the ranks load their parts, each on its `cores`."""
        log_level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        for rank in self._ranks:
            start = {
                "config": config,
                "membership": {**membership, "rank": rank.number},
                "cores": sorted(cores[rank.number]),
                "log_level": log_level,
            }
            rank.control.send_bytes(json.dumps(start).encode())
        self._watch.start()

    def expect_progress(self) -> None:
        """From now on all ranks keep in step: one that keeps the others waiting hangs."""
        self._expects_progress.set()

    def begin_step(self) -> None:
        for rank in self._ranks:
            rank.control.send_bytes(_STEP)

    def end_step(self) -> list[bytes]:
        """Wait until every rank has written its logits; what each says of its activations."""
        return [rank.control.recv_bytes() for rank in self._ranks]

    def close(self) -> None:
        """End the ranks. Does nothing the second time."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        for rank in self._ranks:
            rank.end()
        os.close(self.frame_descriptor)
        self._meeting_point.close()

    def _watch_forever(self) -> None:
        counts = Stillness()
        while not self._is_closing.wait(STALL_CHECK_S):
            self.arrivals.beat()
            fault = next((text for rank in self._ranks if (text := rank.fault())), None) or self._hang(counts)
            if fault is not None and not self._is_closing.is_set():
                for rank in self._ranks:
                    rank.kill()
                self._on_lost(fault)
                return

    def _hang(self, counts: Stillness) -> str | None:
        """Which rank hangs; None where none does, or where ranks may take different times."""
        snapshot = self.arrivals.snapshot()
        is_still = counts.seconds(snapshot) >= self._timeout_s
        if not (is_still and self._expects_progress.is_set() and is_waited(snapshot)):
            return None
        name = f"rank {laggards(snapshot)[0]}" if laggards(snapshot) else "one of the ranks"
        return f"{name} keeps the others waiting for {self._timeout_s:g} s; it hangs"


class _Rank:
    """One process and the connections to it."""

    def __init__(self, number: int, arrivals: int, frame: int) -> None:
        self.number = number
        self.control, control = Pipe()
        self._alarm, alarm = Pipe()
        descriptors = Descriptors(control.fileno(), alarm.fileno(), arrivals, frame)
        self._process = subprocess.Popen(
            python_command("distllm.engine.distributed.rank", descriptors.text()),
            pass_fds=(descriptors.control, descriptors.alarm, arrivals, frame),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what libraries print is no output of the server's
        )
        control.close()
        alarm.close()

    def fault(self) -> str | None:
        """Why the rank cannot go on, in one line; None while it can."""
        if reason := _read(self._alarm):
            return reason
        code = self._process.poll()
        if code is None:
            return None
        end = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"rank {self.number} ended ({end})"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        self.kill()
        self._process.wait()
        self.control.close()
        self._alarm.close()


def _read(alarm: Connection) -> str | None:
    try:
        return alarm.recv_bytes().decode() if alarm.poll() else None
    except (EOFError, OSError):  # it has ended, as its exit status will tell
        return None
