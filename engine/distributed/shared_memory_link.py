"""A step through memory that the ranks of one host share: written once, and told by a word on each connection."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.rank_start import RankStart

if TYPE_CHECKING:
    from distllm.engine.batch import StepTensors
    from distllm.engine.distributed.step_exchange import RankResult
    from distllm.engine.distributed.step_frame import FrameSize, StepFrame

_STEP = b"step"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What a rank is given: connections for steps and for what went wrong, and two pieces of shared memory."""

    control: int
    alarm: int
    arrivals: int
    frame: int

    def numbers(self) -> tuple[int, ...]:
        return astuple(self)

    def text(self) -> str:
        return ",".join(map(str, self.numbers()))


class SharedMemoryExchange:
    """The first rank's end: a StepExchange with the ranks at the other ends of `controls`."""

    def __init__(self, frame: "StepFrame", controls: Sequence[Connection]) -> None:
        self._frame = frame
        self._controls = controls

    def send_step(self, batch: "StepTensors") -> None:
        self._frame.write(batch)
        for control in self._controls:
            control.send_bytes(_STEP)

    def receive_results(self, batch: "StepTensors") -> list["RankResult"]:
        from distllm.engine.distributed.step_exchange import RankResult

        digests = [control.recv_bytes() for control in self._controls]
        return [RankResult(digest, self._frame.read_logits(rank, batch)) for rank, digest in enumerate(digests, 1)]


class SharedMemoryLink:
    """A rank's end: a FirstRankLink."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._control = Connection(descriptors.control)
        self._alarm = Connection(descriptors.alarm)
        self._frame: StepFrame | None = None
        self._rank = 0

    def receive_start(self) -> RankStart:
        return RankStart.decode(self._control.recv_bytes())

    def join(self, rank: int, size: int) -> Arrivals:
        self._rank = rank
        return Arrivals(self._descriptors.arrivals, rank, size)

    def open_frame(self, size: "FrameSize") -> None:
        from distllm.engine.distributed.step_frame import StepFrame

        self._frame = StepFrame(self._descriptors.frame, size)

    def receive_step(self) -> "StepTensors":
        assert self._frame is not None
        self._control.recv_bytes()
        return self._frame.read()

    def send_result(self, result: "RankResult") -> None:
        assert self._frame is not None
        self._frame.write_logits(self._rank, result.logits)
        self._control.send_bytes(result.digest)

    def alarm(self, reason: str) -> None:
        self._alarm.send_bytes(reason.encode())
