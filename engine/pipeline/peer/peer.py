"""A peer: stays connected to its coordinator, and does what it is told."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes_of_ranks, resolve_device
from distllm.engine.interface import StepOutput
from distllm.engine.pipeline.delivery import Refused, deliver
from distllm.engine.pipeline.measuring.link_probing import probe_links
from distllm.engine.pipeline.measuring.link_timing import PROBE_PATH, answer_probe
from distllm.engine.pipeline.measuring.surveyor import Surveyor
from distllm.engine.pipeline.messages import (
    CONTROL,
    STEP,
    Beat,
    Dismiss,
    EdgeDown,
    Endpoint,
    Fence,
    Fenced,
    FenceFailed,
    Hello,
    Keep,
    LayerSample,
    Load,
    Loaded,
    LoadFailed,
    Loading,
    Measure,
    ProbeLinks,
    Result,
    StageConfig,
    StageLost,
    StepHeader,
    ToCoordinator,
    ToPeer,
    Welcome,
)
from distllm.engine.pipeline.peer.joining import renew
from distllm.engine.pipeline.peer.loaded_stages import LoadedStages
from distllm.engine.pipeline.peer.stage import Stage
from distllm.engine.pipeline.peer.steps import Epoch, StepRunner
from distllm.engine.pipeline.peer.version import PROTOCOL_VERSION
from distllm.engine.pipeline.security.identity import InvalidIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import PeerApp, Reply
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from distllm.engine.pipeline.transport.server import Http2Server
from distllm.engine.pipeline.weights.folders import WeightFolders
from distllm.engine.pipeline.weights.source import WeightSource
from distllm.engine.pipeline.weights.stage_weights import StageWeights
from distllm.engine.pipeline.wire.frame import Frame, decode_frame, encode_frame
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame
from distllm.engine.pipeline.wire.stream_decoder import StreamDecoder
from distllm.engine.pool_size import OutOfMemory
from distllm.engine.quantization.config import QuantizationWish

logger = logging.getLogger("distllm.pipeline")


_RECONNECT_S = (0.1, 5.0)  # the first pause, the longest
_decode_message = msgspec.msgpack.Decoder(ToPeer)


class Peer:
    """`directory` holds its identity and what it measured.

    `weights` say what its stages are loaded from, `here` what they run on, `wish` how they had better be quantized.

    It listens on the host and port `listen`; others are told `host` and `port`, or its own port where that is 0.
    """

    def __init__(
        self,
        coordinator: Address,
        directory: Path,
        here: EngineConfig,
        weights: WeightFolders,
        host: str,
        port: int,
        listen: tuple[str, int],
        max_message_bytes: int,
        wish: QuantizationWish | None = None,
        renewal_check_s: float = 60.0,
    ) -> None:
        self._coordinator = coordinator
        self._directory = directory
        self._identity = IdentityFiles.current(directory).read()
        self._renewal_check_s = renewal_check_s
        self._server: Http2Server | None = None
        self._here = here
        self._host, self._port, self._listen = host, port, listen
        self._max_bytes = max_message_bytes
        self._wish = wish
        self._beat_s: float | None = None
        self._boot = secrets.token_hex(8)
        self._compute = ThreadPoolExecutor(1, "stage")
        self._loading = ThreadPoolExecutor(1, "loading")  # steps of another stage go on meanwhile
        self._weights = StageWeights(weights, coordinator, self._connect, self._loading)
        self._stages = LoadedStages(self._weights, here, self._loading, self._report_lost)
        self._runner = StepRunner(self._compute, self._send_result, self._report_trouble)
        self._surveyor = Surveyor(here, self._free_bytes(), directory / "measured", self._compute)
        self._uplink: Http2Client | None = None
        self._successors: dict[PeerId, Http2Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dismissal: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> str:
        """Serve until the coordinator dismisses this peer; why. Raises OSError where the port is taken."""
        await self._start_listening()
        logger.info("peer %s listens on %s:%d", self._identity.peer_id, *self._listen)
        self._begin(self._runner.run())
        self._begin(self._stay_connected())
        self._begin(self._keep_certificate())
        try:
            return await self._dismissal
        finally:
            for task in self._tasks:
                task.cancel()
            await self._stop_listening()
            self._stages.close()
            self._compute.shutdown(wait=False, cancel_futures=True)
            self._loading.shutdown(wait=False, cancel_futures=True)

    async def _start_listening(self) -> None:
        source = WeightSource(self._weights.find_holding, self._max_bytes)
        probed = {PROBE_PATH: answer_probe(self._max_bytes)}
        app = PeerApp(self._max_bytes, {"/v1/step": self._take_step, **source.posts, **probed}, {}, {})
        host, port = self._listen
        self._server = Http2Server(app, host, port, IdentityFiles.current(self._directory))
        self._listen = (host, await self._server.start())
        self._port = self._port or self._listen[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def _keep_certificate(self) -> None:
        """Get another before it expires, and listen with that. Senders repeat the calls that this cuts off."""
        while True:
            await asyncio.sleep(self._renewal_check_s)
            if not self._identity.needs_renewal(datetime.now(UTC)) or self._uplink is None:
                continue
            try:
                self._identity = await renew(self._uplink, self._identity, [self._host], self._directory)
            except (Unreachable, JoinRefused, InvalidIdentity) as error:
                logger.warning("the certificate was not renewed: %s", error)
                continue
            await self._stop_listening()
            await self._start_listening()
            self._successors.clear()  # the next epoch connects with the new certificate
            logger.info("the certificate was renewed, until %s", f"{self._identity.expires_at:%F %T} UTC")

    async def _stay_connected(self) -> None:
        pause_s, longest_s = _RECONNECT_S
        while True:
            try:
                await self._follow_coordinator()
                pause_s = _RECONNECT_S[0]
            except (Unreachable, MalformedFrame) as error:
                logger.warning("%s; trying again", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def _follow_coordinator(self) -> None:
        """Hold a connection to the coordinator until it breaks."""
        link = await self._connect(self._coordinator)
        self._uplink = await self._connect(self._coordinator)
        beating: asyncio.Task[None] | None = None
        try:
            decoder = StreamDecoder(self._max_bytes)
            async for piece in link.stream("/v1/link"):
                for frame in decoder.feed(piece):
                    self._take(frame)
                if beating is None and self._beat_s is not None:
                    await self._say_hello(self._uplink)
                    beating = asyncio.create_task(self._beat(self._uplink, self._beat_s))
        finally:
            if beating is not None:
                beating.cancel()
            uplink, self._uplink = self._uplink, None
            await link.close()
            if uplink is not None:
                await uplink.close()

    async def _say_hello(self, uplink: Http2Client) -> None:
        endpoint = Endpoint(peer_id=self._identity.peer_id, host=self._host, port=self._port)
        hello = Hello(
            version=PROTOCOL_VERSION,
            boot=self._boot,
            endpoint=endpoint,
            free_bytes=self._free_bytes(),
            quantization=self._wish,
        )
        status, answer = await uplink.post("/v1/report", _frame(hello), 10.0)
        if status != 200:
            self._leave(answer.decode(errors="replace"))

    async def _beat(self, uplink: Http2Client, every_s: float) -> None:
        """Beats come from where steps are handed out, and say how long the present one has been computed."""
        round_trip_s: float | None = None
        while True:
            beat = Beat(
                boot=self._boot,
                busy_s=self._runner.busy_s,
                work=self._runner.work,
                free_bytes=self._free_bytes(),
                round_trip_s=round_trip_s,
            )
            sent_s = time.monotonic()
            with contextlib.suppress(Unreachable):
                await uplink.post("/v1/report", _frame(beat), 2 * every_s + 1.0)
                round_trip_s = time.monotonic() - sent_s
            await asyncio.sleep(every_s)

    def _free_bytes(self) -> int:
        """On the devices of all ranks."""
        return measure_free_bytes_of_ranks(resolve_device(self._here.device), self._here.tensor_parallel_size or 1)

    def _take(self, frame: Frame) -> None:
        """What has come down the link."""
        if frame.kind == STEP:
            self._runner.take(None, frame)
            return
        message = frame.header(_decode_message)
        match message:
            case Welcome(beat_s=beat_s):
                self._beat_s = beat_s
            case Load(config=config):
                self._begin(self._load(config))
            case Keep(configs=configs):
                self._stages.keep(configs)
            case Fence():
                self._begin(self._join_epoch(message))
            case Measure(sample=sample):
                self._begin(self._measure(sample))
            case ProbeLinks():
                self._begin(self._probe(message))
            case Dismiss(reason=reason):
                self._leave(reason)

    def _leave(self, reason: str) -> None:
        if not self._dismissal.done():
            self._dismissal.set_result(reason)

    async def _take_step(self, caller: PeerId | None, body: bytes) -> Reply:
        try:
            frame = decode_frame(body, self._max_bytes)
            if frame.kind != STEP:
                return Reply.refusal(400, f"a frame of kind {frame.kind} is no step")
            status = self._runner.take(caller, frame)
        except MalformedFrame as error:
            return Reply.refusal(400, str(error))
        return Reply(status, b"" if status == 200 else status.name.encode())

    async def _load(self, config: StageConfig) -> None:
        try:
            stage = await self._loaded_stage(config)
        except (CheckpointError, OutOfMemory, ValueError, OSError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            logger.error("layers %d to %d cannot be loaded: %s", config.begin, config.end - 1, reason)
            await self._tell(LoadFailed(config=config, reason=reason))
        else:
            await self._tell(Loaded(config=config, info=stage.info))

    async def _loaded_stage(self, config: StageConfig) -> Stage:
        def on_progress(activity: str, done: float) -> None:
            self._begin(self._tell(Loading(config=config, activity=activity, done=done)))

        return await self._stages.get(config, on_progress)

    async def _measure(self, sample: LayerSample) -> None:
        await self._tell(await self._surveyor.measure(sample))

    async def _probe(self, request: ProbeLinks) -> None:
        coordinator = self._coordinator if request.to_coordinator else None
        ends = [Address(PeerId(it.peer_id), it.host, it.port) for it in request.to_peers]
        here = self._identity.peer_id
        await self._tell(await probe_links(here, coordinator, ends, self._connect))

    async def _join_epoch(self, fence: Fence) -> None:
        try:
            stage = await self._loaded_stage(fence.config)
            await asyncio.get_running_loop().run_in_executor(self._compute, stage.allocate, fence.num_blocks)
            successor = None if fence.successor is None else await self._client_of(fence.successor)
        except (CheckpointError, OutOfMemory, ValueError, OSError, MemoryError) as error:
            await self._tell(FenceFailed(epoch=fence.epoch, reason=str(error) or type(error).__name__))
            return
        self._runner.begin_epoch(Epoch(fence, stage, successor))
        await self._tell(Fenced(epoch=fence.epoch))

    async def _connect(self, address: Address) -> Http2Client:
        return await Http2Client.open(address, self._identity)

    async def _client_of(self, endpoint: Endpoint) -> Http2Client:
        peer_id = PeerId(endpoint.peer_id)
        address = Address(peer_id, endpoint.host, endpoint.port)
        known = self._successors.get(peer_id)
        if known is None or known.address != address:
            if known is not None:
                await known.close()
            self._successors[peer_id] = await self._connect(address)
        return self._successors[peer_id]

    async def _send_result(self, header: StepHeader, output: StepOutput) -> None:
        result = Result(epoch=header.epoch, number=header.number, output=output)
        await self._tell(result, header.epoch)

    def _report_lost(self, config: StageConfig, reason: str) -> None:
        logger.error("layers %d to %d are lost: %s", config.begin, config.end - 1, reason)
        self._begin(self._tell(StageLost(config=config, reason=reason)))

    def _report_trouble(self, trouble: EdgeDown | FenceFailed) -> None:
        self._begin(self._tell(trouble, trouble.epoch))

    async def _tell(self, message: ToCoordinator, epoch: int | None = None) -> None:
        """Tell the coordinator, as long as this peer is connected, and in `epoch` where one is given."""
        uplink = self._uplink
        if uplink is None:
            return

        def is_wanted() -> bool:
            return uplink is self._uplink and epoch in (None, self._runner.epoch)

        with contextlib.suppress(Refused):
            await deliver(uplink, "/v1/report", _frame(message), is_wanted)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("this peer cannot go on", exc_info=error)
            self._leave(f"{type(error).__name__}: {error}")


def _frame(message: ToCoordinator) -> bytes:
    return b"".join(encode_frame(CONTROL, message))
