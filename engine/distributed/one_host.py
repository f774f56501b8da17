"""Ranks that are all on this host, started by this process or by a launcher: they share memory."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.local_rank import LocalRank
from distllm.engine.distributed.meeting_point import FileMeetingPoint
from distllm.engine.distributed.membership import Membership
from distllm.engine.distributed.rank_start import RankStart
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.distributed.shared_memory_link import SharedMemoryExchange
from distllm.engine.distributed.shared_memory_op import new_name
from distllm.engine.distributed.step_frame import FrameSize, StepFrame
from distllm.engine.pipeline.layer_range import LayerRange

MakeRanks = Callable[[int, int], Sequence[LocalRank]]
"""Given descriptors of the arrivals and of the frame, the ranks from 1."""


class OneHost:
    """A Placement of `size` ranks, each with its `cores`, or all without where something else has bound them."""

    def __init__(self, size: int, cores: Sequence[frozenset[int]], num_cores: int, make_ranks: MakeRanks) -> None:
        self.num_cores = num_cores
        self._cores = cores
        self._frame = create_descriptor()
        self._meeting_point = FileMeetingPoint()
        arrivals = create_descriptor()
        try:
            self.arrivals = Arrivals(arrivals, 0, size)
            self._ranks = make_ranks(arrivals, self._frame)
        finally:
            os.close(arrivals)
        self.membership = Membership(
            rank=0, size=size, meeting_point=self._meeting_point.url, name=new_name(), num_local=size
        )
        self._is_closed = False

    @property
    def cores(self) -> frozenset[int]:
        return self._cores[0]

    def start(self, config: EngineConfig, membership: Membership, layers: LayerRange | None = None) -> None:
        """As Placement says; `layers` are those of a stage."""
        for rank in self._ranks:
            start = RankStart(
                config=config,
                layers=layers,
                membership=replace(membership, rank=rank.number, local_rank=rank.number),
                cores=sorted(self._cores[rank.number]),
                first_rank_pid=os.getpid(),
            )
            rank.control.send_bytes(start.encode())

    def open_exchange(self, size: FrameSize) -> SharedMemoryExchange:
        return SharedMemoryExchange(StepFrame(self._frame, size), [rank.control for rank in self._ranks])

    def expect_progress(self) -> None:
        """The ranks watch this one from then on by themselves."""

    def beat(self) -> None:
        self.arrivals.beat()

    def fault(self, _patience_s: float) -> str | None:
        """The ranks' processes cannot be out of reach: of those that hang, the arrivals tell."""
        return next((text for rank in self._ranks if (text := rank.fault())), None)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def close(self) -> None:
        """Does nothing the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        for rank in self._ranks:
            rank.end()
        os.close(self._frame)
        self._meeting_point.close()
