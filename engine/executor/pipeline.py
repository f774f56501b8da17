"""Runs steps over stages on other machines. This process is their coordinator."""

import asyncio
import logging
import threading
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.checkpoint_name import checkpoint_name
from distllm.engine.config import DtypeName, EngineConfig
from distllm.engine.context_length import resolve_length, supported_length
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.loading import load_config
from distllm.engine.pipeline.coordinator.desk import Desk
from distllm.engine.pipeline.coordinator.event_file import EventFile
from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.holders import Holders
from distllm.engine.pipeline.coordinator.listeners import Listeners
from distllm.engine.pipeline.coordinator.loading_focus import LoadingFocus
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.model_sample import ModelSample, sample_model
from distllm.engine.pipeline.coordinator.observer import Observer
from distllm.engine.pipeline.coordinator.pipeline import Pipeline
from distllm.engine.pipeline.coordinator.placer import Placer
from distllm.engine.pipeline.coordinator.reception import Reception
from distllm.engine.pipeline.coordinator.relay import Relay
from distllm.engine.pipeline.coordinator.routes import Routes
from distllm.engine.pipeline.coordinator.snapshot import OnCluster
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.measuring.link_timing import PROBE_PATH, answer_probe
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.encryption import write_encryption
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.weights.hash_store import HashStore
from distllm.engine.pipeline.weights.manifest import fingerprint_of, make_manifest
from distllm.engine.pipeline.weights.source import Holding, WeightSource
from distllm.engine.progress import OnLost, Progress

logger = logging.getLogger("distllm.pipeline")


class PipelineExecutor:
    """An Executor whose steps are under way on several machines at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipeline: Pipeline, info: ExecutorInfo) -> None:
        self._loop = loop
        self._pipeline = pipeline
        self._info = info

    @property
    def info(self) -> ExecutorInfo:
        return self._info

    @property
    def max_in_flight(self) -> int:
        return self._pipeline.max_in_flight

    def submit(self, step: StepInput) -> "Future[StepOutput]":
        """Begin the step. It is done once, and exactly as if no stage ever failed."""
        future: Future[StepOutput] = Future()
        self._loop.call_soon_threadsafe(self._pipeline.append, step, future)
        return future

    def close(self) -> None:
        """End the coordinator. Peers wait for another."""
        self._loop.call_soon_threadsafe(self._loop.stop)


def start_pipeline(
    config: EngineConfig, on_progress: Progress, on_lost: OnLost, on_cluster: OnCluster
) -> PipelineExecutor:
    """Coordinate peers; returns once enough have joined and loaded their layers. `on_cluster` hears of them before.

    Raises CheckpointError, ClusterStateError, ValueError or OSError, each with one line for the operator.
    """
    assert config.cluster is not None
    settings = config.cluster
    hashes = HashStore(make_private_dir(Path(settings.state_dir)) / "hashes")
    manifest, places = make_manifest(Path(config.model), hashes, on_progress)
    holding = Holding(manifest.encode(), places)
    model = sample_model(config, describe_model(config, fingerprint_of(holding.manifest)))
    started: Future[PipelineExecutor] = Future()

    def run() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        coordinating = loop.create_task(_coordinate(settings, model, holding, on_progress, on_cluster, started))
        coordinating.add_done_callback(lambda task: _end(task, started, on_lost))
        loop.run_forever()

    threading.Thread(target=run, name="coordinator", daemon=True).start()
    return started.result()


def _end(task: "asyncio.Task[None]", started: "Future[PipelineExecutor]", on_lost: OnLost) -> None:
    error = None if task.cancelled() else task.exception()
    if error is None:
        return
    if not started.done():
        started.set_exception(error)
    else:
        logger.error("the coordinator failed", exc_info=error)
        on_lost(f"the coordinator failed: {error}")


async def _coordinate(
    settings: ClusterSettings,
    model: ModelSample,
    holding: Holding,
    on_progress: Progress,
    on_cluster: OnCluster,
    started: "Future[PipelineExecutor]",
) -> None:
    state_dir, now = Path(settings.state_dir), datetime.now(UTC)
    authority = ClusterAuthority.open(state_dir, now)
    event_file = EventFile(state_dir)
    members, events, whole = Members(), EventLog(event_file.read()), model.whole
    survey = Survey(members, model)
    placer = Placer(members, survey, whole, settings)
    routes = Routes(members, survey, settings.compression)
    pipeline = Pipeline(members, whole, model.vocab_size, placer, routes, settings, events)
    relay = Relay(members, pipeline.relayed_to, settings.max_message_bytes)
    observer = Observer(members, survey, pipeline, whole, placer.num_needed, events, RemovedPeers(state_dir))
    tokens = TokenStore(state_dir, authority.fingerprint)
    on_loading = LoadingFocus(on_progress)
    reception = Reception(
        authority,
        tokens,
        members,
        settings,
        Listeners(
            result=pipeline.take_result,
            loading=on_loading,
            measured=survey.take,
            received=relay.take_receipt,
            has_edge=pipeline.has_edge,
        ),
        events,
        RemovedPeers(state_dir),
        model.why_refused,
    )
    source = WeightSource({whole.fingerprint: holding}.get, settings.max_message_bytes)
    posts = {
        **source.posts,
        **Holders(members).posts,
        **relay.posts,
        PROBE_PATH: answer_probe(settings.max_message_bytes),
    }
    is_encrypted = settings.is_encrypted
    app = reception.app(posts)
    desk = Desk(app, settings.host, settings.port, authority, state_dir / "coordinator", is_encrypted=is_encrypted)
    try:
        port = await desk.open()
    except OSError as error:
        raise ClusterStateError(f"{error}; see coordinator.host and coordinator.port") from None
    write_encryption(state_dir, is_encrypted=is_encrypted)
    if not is_encrypted:
        logger.warning("connections are not encrypted: who can listen can read and change everything")
    logger.info("peers may join at %s:%d", settings.host, port)
    running = asyncio.gather(
        pipeline.run(),
        survey.run(),
        placer.run(pipeline.present),
        desk.keep_certificate(),
        events.keep(event_file),
    )
    async with observer.reporting(on_cluster):
        while not (running.done() or pipeline.ready.done()):
            if placer.seats(pipeline.present().peer_ids) is None:
                on_progress(f"at port {port}, waiting for {placer.waits_for}", 0.0)
            both: set[asyncio.Future[Any]] = {running, pipeline.ready}
            await asyncio.wait(both, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        if pipeline.ready.done():
            started.set_result(PipelineExecutor(asyncio.get_running_loop(), pipeline, pipeline.ready.result()))
        await running


def describe_model(config: EngineConfig, fingerprint: str) -> StageConfig:
    """The whole model as one stage; `fingerprint` is of its manifest. Raises CheckpointError or ValueError."""
    path = Path(config.model)
    checkpoint = open_checkpoint(path)
    text = load_config(checkpoint).get_text_config()
    return StageConfig(
        model=checkpoint_name(path),
        fingerprint=fingerprint,
        begin=0,
        end=text.num_hidden_layers,
        num_layers=text.num_hidden_layers,
        dtype=cast(DtypeName, resolve_dtype(config.dtype, checkpoint, "cpu")),
        kv_cache_dtype=config.kv_cache_dtype,
        quantization=config.quantization,
        max_model_len=resolve_length(config.max_model_len, supported_length(checkpoint.text_config)),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        numerics=config.numerics,
    )
