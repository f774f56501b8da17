"""Where the other ranks of a model are, and how the first one reaches them."""

from typing import Protocol

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.membership import Membership
from distllm.engine.distributed.step_exchange import StepExchange
from distllm.engine.distributed.step_frame import FrameSize


class Placement(Protocol):
    """The ranks 1 .. size - 1. Close it: nothing of it is left then, nor when this process dies."""

    @property
    def membership(self) -> Membership:
        """The first rank's."""

    @property
    def arrivals(self) -> Arrivals: ...

    @property
    def cores(self) -> frozenset[int]:
        """Those of the first rank; none where it is not for us to bind it."""

    @property
    def num_cores(self) -> int:
        """Those of all ranks of the first rank's host."""

    def start(self, config: EngineConfig, membership: Membership) -> None:
        """Let the others load their parts, under the first rank's `membership` as it was settled."""

    def open_exchange(self, size: FrameSize, /) -> StepExchange: ...

    def expect_progress(self) -> None:
        """From now on all ranks run steps."""

    def beat(self) -> None:
        """Show all ranks that the first one runs."""

    def fault(self, patience_s: float, /) -> str | None:
        """Why ranks cannot go on, in one line; None while they can.

        Once progress is expected, a rank of which nothing is heard for `patience_s` cannot.
        """

    def kill(self) -> None:
        """End the ranks' processes without waiting for that."""

    def close(self) -> None:
        """End the ranks."""
