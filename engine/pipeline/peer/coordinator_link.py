"""A peer's connections to its coordinator: what comes down two streams, and what is told it, beats above all."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from distllm.engine.pipeline.delivery import Refused, deliver
from distllm.engine.pipeline.messages import (
    BULK_PATH,
    CONTROL,
    LINK_PATH,
    STEP,
    Beat,
    Hello,
    ToCoordinator,
    ToPeer,
    Welcome,
)
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.transport.client import Http2Client, TurnedAway, Unreachable
from distllm.engine.pipeline.wire.frame import Frame, encode_frame
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame
from distllm.engine.pipeline.wire.stream_decoder import StreamDecoder

logger = logging.getLogger("distllm.pipeline")

_RECONNECT_S = (0.1, 5.0)  # the first pause, the longest
_REPORT_PATH = "/v1/report"
_decode_message = msgspec.msgpack.Decoder(ToPeer)


class CoordinatorLink:
    """`run` it. `take_step` and `take_message` get what comes down, and may raise MalformedFrame.

    `explain` says why `connect` fails where it knows, and raises JoinRefused where that can never succeed.
    `hello` and `beat` say what a peer tells of itself, the latter given how long the beat before took. Where the
    coordinator will not have this peer, `leave` is told why.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Http2Client]],
        explain: Callable[[], Awaitable[str | None]],
        max_bytes: int,
        take_step: Callable[[Frame], None],
        take_message: Callable[[ToPeer], None],
        hello: Callable[[], Hello],
        beat: Callable[[float | None], Beat],
        leave: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._explain = explain
        self._max_bytes = max_bytes
        self._take_step = take_step
        self._take_message = take_message
        self._hello = hello
        self._beat = beat
        self._leave = leave
        self.uplink: Http2Client | None = None
        """For calls to the coordinator, while this peer is connected."""

    async def run(self) -> None:
        """Stay connected, for as long as the coordinator may have this peer."""
        pause_s, longest_s = _RECONNECT_S
        while True:
            try:
                await self._follow()
                pause_s = _RECONNECT_S[0]
            except TurnedAway as error:
                self._leave(str(error))
                return
            except (Unreachable, MalformedFrame) as error:
                try:
                    reason = await self._explain()
                except JoinRefused as refusal:
                    self._leave(str(refusal))
                    return
                logger.warning("%s; trying again", reason or error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def tell(self, message: ToCoordinator, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Tell the coordinator, as long as this peer stays connected and that `is_wanted`."""
        uplink = self.uplink
        if uplink is None:
            return
        try:
            await deliver(uplink, _REPORT_PATH, _frame(message), lambda: uplink is self.uplink and is_wanted())
        except Refused as refusal:
            logger.error("the coordinator refused a report: %s", refusal)

    async def _follow(self) -> None:
        """Be connected until a connection breaks. Raises Unreachable or MalformedFrame."""
        link, bulk = await self._connect(), await self._connect()
        uplink = self.uplink = await self._connect()
        welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        tasks = [
            asyncio.create_task(self._read(link, LINK_PATH, welcomed)),
            asyncio.create_task(self._read_bulk(bulk, welcomed)),
            asyncio.create_task(self._keep_beating(uplink, welcomed)),
        ]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.uplink = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(link.close(), bulk.close(), uplink.close())
        for task in ended:
            task.result()

    async def _read(self, client: Http2Client, path: str, welcomed: "asyncio.Future[Welcome]") -> None:
        """Take what comes down a stream until it ends."""
        decoder = StreamDecoder(self._max_bytes)
        async for piece in client.stream(path):
            for frame in decoder.feed(piece):
                if frame.kind == STEP:
                    self._take_step(frame)
                    continue
                message = frame.header(_decode_message)
                self._take_message(message)
                if isinstance(message, Welcome) and not welcomed.done():
                    welcomed.set_result(message)

    async def _read_bulk(self, client: Http2Client, welcomed: "asyncio.Future[Welcome]") -> None:
        """The stream beside the link, which the link comes before."""
        await welcomed
        await self._read(client, BULK_PATH, welcomed)

    async def _keep_beating(self, uplink: Http2Client, welcomed: "asyncio.Future[Welcome]") -> None:
        """Say hello, and that this peer runs, for ever."""
        welcome = await welcomed
        every_s = welcome.beat_s
        status, answer = await uplink.post(_REPORT_PATH, _frame(self._hello()), welcome.patience.timeout_s)
        if status != 200:
            self._leave(answer.decode(errors="replace"))
        round_trip_s: float | None = None
        while True:
            sent_s = time.monotonic()
            with contextlib.suppress(Unreachable):
                await uplink.post(_REPORT_PATH, _frame(self._beat(round_trip_s)), 2 * every_s + 1.0)
                round_trip_s = time.monotonic() - sent_s
            await asyncio.sleep(every_s)


def _frame(message: ToCoordinator) -> bytes:
    return b"".join(encode_frame(CONTROL, message))
