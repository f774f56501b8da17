"""Ranks on several hosts: nothing is shared but connections, by which steps, results and beats travel."""

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from distllm.engine.batch import StepTensors
from distllm.engine.config import EngineConfig
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.cores import share_cores
from distllm.engine.distributed.hosts.remote_rank import RemoteRank
from distllm.engine.distributed.hosts.step_messages import decode_result, encode_step
from distllm.engine.distributed.hosts.wire import Kind, Wire, WireClosed
from distllm.engine.distributed.launcher.launch import LaunchedRanks
from distllm.engine.distributed.meeting_point import StoreMeetingPoint
from distllm.engine.distributed.membership import Membership
from distllm.engine.distributed.rank_start import RankStart
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.distributed.shared_memory_op import new_name
from distllm.engine.distributed.step_exchange import RankResult
from distllm.engine.distributed.step_frame import FrameSize
from distllm.engine.python_command import python_command


class SeveralHosts:
    """A Placement of ranks that a launcher has put on several hosts, and that have come on `connections`."""

    def __init__(self, launched: LaunchedRanks, connections: Sequence[socket.socket], timeout_s: float) -> None:
        """`connections` are those of the ranks from 1; `timeout_s` is how long the first rank may hang."""
        self._binds_cores = launched.binds_cores
        self._timeout_s = timeout_s
        cores = [frozenset[int]()] if launched.binds_cores else share_cores(launched.num_local)
        self.cores = cores[0]
        self.num_cores = sum(map(len, cores))
        self._descriptor = create_descriptor()
        self.arrivals = Arrivals(self._descriptor, 0, launched.size)
        self._ranks = [
            RemoteRank(number, Wire(connection), self.arrivals) for number, connection in enumerate(connections, 1)
        ]
        self._meeting_point = StoreMeetingPoint(launched.address)
        self.membership = Membership(
            rank=0,
            size=launched.size,
            meeting_point=self._meeting_point.url,
            name=new_name(),
            num_local=launched.num_local,
        )
        self._watch: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def start(self, config: EngineConfig, membership: Membership) -> None:
        for rank in self._ranks:
            start = RankStart(
                config=config,
                membership=replace(membership, rank=rank.number),
                cores=[] if self._binds_cores else None,
                first_rank_pid=None,
            )
            rank.wire.send(Kind.START, start.encode())

    def open_exchange(self, _size: FrameSize) -> "WireExchange":
        """Messages are as large as they need to be."""
        return WireExchange(self._ranks)

    def expect_progress(self) -> None:
        """From another host this process cannot be ended when it hangs: a child looks after it."""
        module = "distllm.engine.distributed.first_rank_watch"
        arguments = (self._descriptor, self.arrivals.size, self._timeout_s)
        self._watch = subprocess.Popen(
            python_command(module, *map(str, arguments)),
            pass_fds=(self._descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=2,
        )

    def beat(self) -> None:
        self.arrivals.beat()
        report = msgspec.json.encode(self.arrivals.report())
        for rank in self._ranks:
            try:
                rank.wire.send_beat(report)
            except WireClosed:
                continue  # as the rank's fault will tell

    def fault(self, patience_s: float) -> str | None:
        """While they load, ranks may be silent: libraries keep the interpreter to themselves."""
        patience = None if self._watch is None else patience_s
        return next((text for rank in self._ranks if (text := rank.fault(patience))), None)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.close()

    def close(self) -> None:
        """Does nothing the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        self.kill()
        os.close(self._descriptor)
        self._meeting_point.close()


class WireExchange:
    """A StepExchange with ranks that share no memory."""

    def __init__(self, ranks: Sequence[RemoteRank]) -> None:
        self._ranks = ranks

    def send_step(self, batch: StepTensors) -> None:
        """Raises WireClosed where a rank has been lost."""
        buffers = encode_step(batch)
        for rank in self._ranks:
            rank.wire.send(Kind.STEP, *buffers)

    def receive_results(self, _batch: StepTensors) -> list[RankResult]:
        """Raises RankLost or MalformedTensors."""
        return [decode_result(rank.next_result()) for rank in self._ranks]
