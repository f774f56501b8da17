"""Times messages between this machine and another: what placement's link probe makes a link of.

POST /v1/probe   body: bytes wanted back (4 bytes, big endian) | any bytes   answer: as many bytes as wanted
"""

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

from distllm.engine.pipeline.placement.link_probe import MIN_SAMPLES, TimedTransfer, measured_link
from distllm.engine.pipeline.placement.measurements import Link, PeerId
from distllm.engine.pipeline.transport.app import Post, Reply
from distllm.engine.pipeline.transport.client import Http2Client, Unreachable

PROBE_PATH = "/v1/probe"
_NUM_ROUND_TRIPS = 7
_TRANSFER_BYTES = (16 << 10, 1 << 20)
_MAX_BYTES = 4 << 20
_WANTED = struct.Struct(">I")


def answer_probe(max_message_bytes: int) -> Post:
    """For a PeerApp: answers probes of no more than `max_message_bytes`."""
    most = min(_MAX_BYTES, max_message_bytes)

    async def answer(_: object, body: bytes) -> Reply:
        if len(body) < _WANTED.size:
            return Reply.refusal(400, f"a probe begins with {_WANTED.size} bytes that say how many it wants back")
        (num_wanted,) = _WANTED.unpack_from(body)
        if num_wanted > most:
            return Reply.refusal(413, f"{num_wanted} bytes are wanted of a probe that gives up to {most}")
        return Reply(200, bytes(num_wanted))

    return answer


@dataclass(frozen=True, slots=True)
class LinkTimer:
    """Of the ways between `here` and the machine `there` that `client` leads to."""

    client: Http2Client
    here: PeerId
    there: PeerId

    async def time_sending(self) -> Link:
        """From here to there. Raises Unreachable or ProbeError."""
        return await self._time(self.here, self.there, lambda num_bytes: self._post(num_bytes, 0))

    async def time_receiving(self) -> Link:
        """From there to here. Raises Unreachable or ProbeError."""
        return await self._time(self.there, self.here, lambda num_bytes: self._post(0, num_bytes))

    async def _time(self, source: PeerId, target: PeerId, transfer: Callable[[int], Awaitable[float]]) -> Link:
        await transfer(0)  # connects
        round_trips_s = [await transfer(0) for _ in range(_NUM_ROUND_TRIPS)]
        transfers = [
            TimedTransfer(num_bytes, await transfer(num_bytes))
            for _ in range(MIN_SAMPLES)
            for num_bytes in _TRANSFER_BYTES
        ]
        return measured_link(source, target, round_trips_s, transfers)

    async def _post(self, num_sent: int, num_wanted: int) -> float:
        """Seconds until the answer is here."""
        body = _WANTED.pack(num_wanted) + bytes(num_sent)
        begin_s = perf_counter()
        status, answer = await self.client.post(PROBE_PATH, body, self.client.patience.timeout_s)
        if status != 200:
            raise Unreachable(f"{self.there} refuses probes: {answer.decode(errors='replace')}")
        return perf_counter() - begin_s
