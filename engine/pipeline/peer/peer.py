"""A peer: stays connected to its coordinator, and does what it is told."""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.device import measure_free_bytes_of_ranks, resolve_device
from distllm.engine.interface import StepOutput
from distllm.engine.pipeline.measuring.link_probing import probe_links
from distllm.engine.pipeline.measuring.link_timing import PROBE_PATH, answer_probe
from distllm.engine.pipeline.measuring.surveyor import Surveyor
from distllm.engine.pipeline.messages import (
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
    Removed,
    Result,
    StageConfig,
    StageLost,
    StepHeader,
    ToCoordinator,
    ToPeer,
    Welcome,
)
from distllm.engine.pipeline.peer.coordinator_link import CoordinatorLink
from distllm.engine.pipeline.peer.edge import STEP_PATH, Edges
from distllm.engine.pipeline.peer.loaded_stages import LoadedStages
from distllm.engine.pipeline.peer.membership import Membership
from distllm.engine.pipeline.peer.stage import Stage
from distllm.engine.pipeline.peer.steps import Epoch, StepRunner
from distllm.engine.pipeline.peer.version import PROTOCOL_VERSION
from distllm.engine.pipeline.security.identity import InvalidIdentity
from distllm.engine.pipeline.security.join_token import JoinRefused
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.client import Address, Unreachable
from distllm.engine.pipeline.transport.server import Http2Server
from distllm.engine.pipeline.weights.folders import WeightFolders
from distllm.engine.pipeline.weights.source import WeightSource
from distllm.engine.pipeline.weights.stage_weights import StageWeights
from distllm.engine.pipeline.wire.frame import Frame, decode_frame
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame, OtherKind
from distllm.engine.pool_size import OutOfMemory
from distllm.engine.quantization.config import QuantizationWish

logger = logging.getLogger("distllm.pipeline")


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
        self._membership = Membership(coordinator, directory)
        self._renewal_check_s = renewal_check_s
        self._server: Http2Server | None = None
        self._here = here
        self._device = resolve_device(here.device)
        self._host, self._port, self._listen = host, port, listen
        self._max_bytes = max_message_bytes
        self._wish = wish
        self._boot = secrets.token_hex(8)
        self._compute = ThreadPoolExecutor(1, "stage")
        self._loading = ThreadPoolExecutor(1, "loading")  # steps of another stage go on meanwhile
        self._weights = StageWeights(weights, coordinator, self._membership.connect, self._loading)
        self._stages = LoadedStages(self._weights, here, self._loading, self._report_lost)
        self._runner = StepRunner(self._compute, self._send_result, self._report_trouble)
        self._surveyor = Surveyor(here, self._free_bytes(), directory / "measured", self._loading)
        self._link = CoordinatorLink(
            self._membership.connect_to_coordinator,
            self._membership.explain_unreachable,
            max_message_bytes,
            self._take_step_from_coordinator,
            self._take,
            self._hello,
            self._beat,
            self._leave,
        )
        self._edges = Edges(coordinator, self._membership.connect)
        self._tasks: set[asyncio.Task[None]] = set()
        self._dismissal: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> str:
        """Serve until the coordinator dismisses this peer; why. Raises OSError where the port is taken."""
        await self._start_listening()
        logger.info("peer %s listens on %s:%d", self._membership.peer_id, *self._listen)
        self._begin(self._runner.run())
        self._begin(self._link.run())
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
        posts = {STEP_PATH: self._take_step, **source.posts, **probed}
        self._server = self._membership.server(self._max_bytes, posts, self._listen)
        self._listen = (self._listen[0], await self._server.start())
        self._port = self._port or self._listen[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def _keep_certificate(self) -> None:
        """Get another before it expires, and listen with that. Senders repeat the calls that this cuts off."""
        while True:
            await asyncio.sleep(self._renewal_check_s)
            uplink = self._link.uplink
            if uplink is None or not self._membership.needs_renewal:
                continue
            try:
                await self._membership.renew(uplink, [self._host])
            except (Unreachable, JoinRefused, InvalidIdentity) as error:
                logger.warning("the certificate was not renewed: %s", error)
                continue
            await self._stop_listening()
            await self._start_listening()
            self._edges.forget()  # the next epoch connects with the new certificate
            logger.info("the certificate was renewed, until %s", f"{self._membership.expires_at:%F %T} UTC")

    def _hello(self) -> Hello:
        endpoint = Endpoint(peer_id=self._membership.peer_id, host=self._host, port=self._port)
        return Hello(
            version=PROTOCOL_VERSION,
            boot=self._boot,
            endpoint=endpoint,
            free_bytes=self._free_bytes(),
            quantization=self._wish,
        )

    def _beat(self, round_trip_s: float | None) -> Beat:
        """Beats come from where steps are handed out, and say how long the present one has been computed."""
        return Beat(
            boot=self._boot,
            busy_s=self._runner.busy_s,
            work=self._runner.work,
            free_bytes=self._free_bytes(),
            round_trip_s=round_trip_s,
        )

    def _free_bytes(self) -> int:
        """On the devices of all ranks."""
        return measure_free_bytes_of_ranks(self._device, self._here.tensor_parallel_size or 1)

    def _take_step_from_coordinator(self, frame: Frame) -> None:
        received = self._runner.take_from_coordinator(frame)
        if received is not None:
            self._begin(self._tell(received, received.epoch))

    def _take(self, message: ToPeer) -> None:
        """What the coordinator says."""
        match message:
            case Welcome():
                self._membership.take(message)
                self._runner.tell_again()
            case Removed():
                self._membership.take(message)
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
                raise OtherKind(frame.kind, "step")
            status = self._runner.take(caller, frame)
        except MalformedFrame as error:
            logger.warning("%s sent what is no step: %s", caller, error)
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
        here = self._membership
        coordinator = here.coordinator if request.to_coordinator else None
        ends = [Address(PeerId(it.peer_id), it.host, it.port) for it in request.to_peers]
        await self._tell(await probe_links(here.peer_id, coordinator, ends, here.connect, here.patience))

    async def _join_epoch(self, fence: Fence) -> None:
        try:
            stage = await self._loaded_stage(fence.config)
            await asyncio.get_running_loop().run_in_executor(self._compute, stage.allocate, fence.num_blocks)
        except (CheckpointError, OutOfMemory, ValueError, OSError, MemoryError) as error:
            await self._tell(FenceFailed(epoch=fence.epoch, reason=str(error) or type(error).__name__))
            return
        try:
            edge = await self._edges.to_successor(fence)
        except Unreachable as error:
            assert fence.successor is not None
            await self._tell(EdgeDown(epoch=fence.epoch, successor=fence.successor.peer_id, reason=str(error)))
            return
        has_begun = self._runner.begin_epoch(Epoch(fence, stage, edge))
        unused = self._edges.keep(edge) if has_begun else None
        await self._tell(Fenced(epoch=fence.epoch))
        if unused is not None:
            await unused.close()

    async def _send_result(self, header: StepHeader, output: StepOutput) -> None:
        result = Result(epoch=header.epoch, number=header.number, output=output)
        await self._tell(result, header.epoch)

    def _report_lost(self, config: StageConfig, reason: str) -> None:
        logger.error("layers %d to %d are lost: %s", config.begin, config.end - 1, reason)
        self._begin(self._tell(StageLost(config=config, reason=reason)))

    def _report_trouble(self, trouble: EdgeDown | FenceFailed) -> None:
        self._begin(self._tell(trouble, trouble.epoch))

    async def _tell(self, message: ToCoordinator, epoch: int | None = None) -> None:
        """Tell the coordinator, in `epoch` where one is given."""
        await self._link.tell(message, lambda: epoch in (None, self._runner.epoch))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("this peer cannot go on", exc_info=error)
            self._leave(f"{type(error).__name__}: {error}")
