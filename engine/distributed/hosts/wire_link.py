"""A rank's end of a wire: takes steps, gives results, and shows that it runs."""

import logging
import os
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from distllm.engine.distributed.arrivals import CHECK_S, Arrivals
from distllm.engine.distributed.hosts.remote_rank import Report
from distllm.engine.distributed.hosts.wire import Kind, Wire, WireClosed
from distllm.engine.distributed.launcher.launch import Launch
from distllm.engine.distributed.rank_start import RankStart
from distllm.engine.distributed.shared_bytes import create_descriptor

if TYPE_CHECKING:
    from distllm.engine.batch import StepTensors
    from distllm.engine.distributed.step_exchange import RankResult
    from distllm.engine.distributed.step_frame import FrameSize

logger = logging.getLogger("distllm.engine")


class WireLink:
    """A FirstRankLink of the rank that a launcher has placed at `launch`."""

    def __init__(self, wire: Wire, launch: Launch) -> None:
        self._wire = wire
        self._launch = launch
        descriptor = create_descriptor()
        self._arrivals = Arrivals(descriptor, launch.rank, launch.size)
        os.close(descriptor)
        self._starts: SimpleQueue[bytearray | None] = SimpleQueue()
        self._steps: SimpleQueue[bytearray | None] = SimpleQueue()
        for work in (self._listen, self._beat_forever):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def receive_start(self) -> RankStart:
        return RankStart.decode(_unless_closed(self._starts.get())).at(self._launch)

    def join(self, rank: int, size: int) -> Arrivals:
        assert (rank, size) == (self._launch.rank, self._launch.size)
        return self._arrivals

    def open_frame(self, size: "FrameSize") -> None:
        """Messages are as large as they need to be."""

    def receive_step(self) -> "StepTensors":
        from distllm.engine.distributed.hosts.step_messages import decode_step

        return decode_step(_unless_closed(self._steps.get()))

    def send_result(self, result: "RankResult") -> None:
        from distllm.engine.distributed.hosts.step_messages import encode_result

        self._wire.send(Kind.RESULT, *encode_result(result))

    def alarm(self, reason: str) -> None:
        self._wire.send(Kind.ALARM, reason.encode())

    def _listen(self) -> None:
        try:
            while True:
                kind, message = self._wire.receive()
                self._arrivals.beat()
                if kind is Kind.STEP:
                    self._steps.put(message)
                elif kind is Kind.START:
                    self._starts.put(message)
                elif kind is Kind.BEAT:
                    self._note(msgspec.json.decode(message, type=list[Report]))
                else:
                    raise WireClosed(f"a message of kind {kind.name} is not the first rank's to send")
        except (WireClosed, msgspec.MsgspecError) as error:
            logger.debug("the first rank has gone: %s", error)
        self._starts.put(None)
        self._steps.put(None)

    def _note(self, reports: list[Report]) -> None:
        """What the others say of themselves; of itself this rank knows better."""
        for rank, report in enumerate(reports[: self._launch.size]):
            if rank != self._launch.rank:
                self._arrivals.note(rank, *report)

    def _beat_forever(self) -> None:
        try:
            while True:
                self._wire.send_beat(msgspec.json.encode(self._arrivals.report()[self._launch.rank]))
                time.sleep(CHECK_S)
        except WireClosed:
            return


def _unless_closed(message: bytearray | None) -> bytearray:
    if message is None:
        raise EOFError
    return message
