"""A step through memory that the ranks of one host share: written once, and told by a word on each connection.

The first rank of a stage says other words as well (`pipeline/ranks/orders.py`).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.rank_start import RankStart

if TYPE_CHECKING:
    from torch import Tensor

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

    def send_step(self, batch: "StepTensors", activations: "Tensor | None" = None, word: bytes = _STEP) -> None:
        """As StepExchange says; `activations` [num_tokens, width] are those that come into a stage."""
        self._frame.write(batch, activations)
        self.tell(word)

    def tell(self, word: bytes) -> None:
        """Say something to all other ranks, which hear it in order."""
        for control in self._controls:
            control.send_bytes(word)

    def hear(self) -> list[bytes]:
        """Wait for a word of every other rank."""
        return [control.recv_bytes() for control in self._controls]

    def receive_results(self, batch: "StepTensors") -> list["RankResult"]:
        from distllm.engine.distributed.step_exchange import RankResult

        return [
            RankResult(digest, self._frame.read_logits(rank, batch)) for rank, digest in enumerate(self.hear(), 1)
        ]


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
        self.hear()
        return self.read_step()[0]

    def hear(self) -> bytes:
        """The first rank's next word."""
        return self._control.recv_bytes()

    def say(self, word: bytes) -> None:
        """Answer the first rank."""
        self._control.send_bytes(word)

    def read_step(self) -> "tuple[StepTensors, Tensor | None]":
        """The step that the first rank has just told of, and the activations that came with it: views."""
        assert self._frame is not None
        return self._frame.read(), self._frame.read_activations()

    def send_result(self, result: "RankResult") -> None:
        assert self._frame is not None
        self._frame.write_logits(self._rank, result.logits)
        self.say(result.digest)

    def alarm(self, reason: str) -> None:
        self._alarm.send_bytes(reason.encode())
