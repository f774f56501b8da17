"""Starts the server: model, engine, HTTP; and ends them in order. Owns nothing that outlives the command."""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.conversion.descriptor import choose_size
from distllm.engine.distributed.launcher.launch import (
    Launch,
    LaunchedRanks,
    LaunchError,
    check_size,
    find_launch,
    read_secret,
)
from distllm.engine.distributed.launcher.launcher_end import end_with_launcher
from distllm.engine.distributed.launcher.rank_agent import run_agent
from distllm.engine.distributed.launcher.rendezvous import listen_for_ranks
from distllm.engine.embedded import EMBEDDED_MODEL_NAME, checkpoint_path
from distllm.engine.generation import GenerationDefaults, load_generation_defaults
from distllm.engine.hub import ModelNotFound, resolve
from distllm.engine.pipeline.security.encryption import write_encryption
from distllm.engine.pipeline.security.state_dir import ClusterStateError, default_cluster_dir
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import StartEngine
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.app import create_app
from distllm.server.cluster_config import cluster_settings, load_cluster_config
from distllm.server.config import ClusterSection, EngineSection, Settings
from distllm.server.coordinator_address import CoordinatorAddress
from distllm.server.dashboard.serving import show_cluster
from distllm.server.descriptors import QuietAccept, raise_descriptor_limit
from distllm.server.draining import DrainingServer
from distllm.server.http_protocol import ConnectionSettings, http_config
from distllm.server.listening import CannotServe, listen, url_of
from distllm.server.loading_bar import LoadingBar
from distllm.server.resuming.stream_log import StreamLog, StreamLogUnusable, open_log
from distllm.server.routing.serving import ServingEngine, latency_target, only_route, serving_engine
from distllm.server.settings import FrontEndSettings, ResumeSettings, SamplingDefaults
from distllm.server.slow_tokenizer import TokenizerError
from distllm.server.tokenizer import Tokenizer

logger = logging.getLogger("distllm.server")

_CONNECTIONS_A_DESCRIPTOR = 0.75
"""The rest of the file descriptors is for everything else."""


def serve(settings: Settings) -> int:
    """Serve until a signal ends it. Returns the exit status."""
    logging.basicConfig(level=settings.server.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        launch = _find_launch(settings.engine)
        if launch is not None and launch.rank > 0:
            return run_agent(launch)
        with listen_for_ranks(launch) as launched:
            checkpoint = find_checkpoint(settings)
            with listen(settings.server.host, settings.server.port) as listener, _open_log(settings) as log:
                asyncio.run(_serve(settings, checkpoint, listener, launched, log))
    except (
        CannotServe,
        StreamLogUnusable,
        LaunchError,
        ModelNotFound,
        CheckpointError,
        TokenizerError,
        EngineUnavailable,
    ) as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    return 0


def _find_launch(engine: EngineSection) -> Launch | None:
    """This process's place where a launcher has started it, with which it then ends. Raises LaunchError."""
    launch = find_launch(os.environ)
    if launch is not None:
        is_set = "tensor_parallel_size" in engine.model_fields_set and engine.tensor_parallel_size != "auto"
        check_size(launch, int(engine.tensor_parallel_size) if is_set else None)
        read_secret(os.environ, launch.num_hosts)
        end_with_launcher(launch)
    return launch


def find_checkpoint(settings: Settings) -> Path:
    """The directory of the model to serve, fetched if need be. Raises ModelNotFound."""
    if settings.model.model is None:
        return checkpoint_path()
    return resolve(settings.model.model, settings.model.revision)


def start_message(
    settings: Settings,
    checkpoint: Path,
    injection_policy: Mapping[str, tuple[str, ...]] | None = None,
    launched: LaunchedRanks | None = None,
    numerics: str | None = None,
) -> StartEngine:
    """What the engine process must know; `launched` ranks are there already, and it goes on in `numerics`.

    Raises CheckpointError.
    """
    engine, scheduler = settings.engine, settings.scheduler
    return StartEngine(
        engine=EngineConfig(
            model=str(checkpoint),
            device=engine.device,
            dtype=settings.model.dtype,
            max_model_len=settings.model.max_model_len,
            kv_cache_bytes=_gib_to_bytes(engine.kv_cache_memory),
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            num_threads=engine.num_threads,
            attention_backend=engine.attention_backend,
            kv_cache_dtype=engine.kv_cache_dtype,
            offload=engine.offload,
            offload_dir=None if engine.offload_dir is None else str(engine.offload_dir.absolute()),
            weights_bytes=_gib_to_bytes(engine.weights_memory),
            tensor_parallel_size=_num_ranks(engine, checkpoint, launched),
            rank_timeout_s=engine.rank_timeout_s,
            rank_check_steps=engine.rank_check_steps,
            quantization=settings.model.quantization_config,
            injection_policy=injection_policy,
            launched=launched,
            numerics=numerics,
            cluster=_cluster(settings.cluster),
        ),
        scheduler=SchedulerConfig(
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            max_waiting=scheduler.max_waiting,
            enable_prefix_caching=scheduler.prefix_caching,
        ),
        log_level=settings.server.log_level,
    )


def _cluster(cluster: ClusterSection) -> ClusterSettings | None:
    """Raises InvalidSettings."""
    if cluster.coordinator is None:
        return None
    config = load_cluster_config(cluster.coordinator, cluster.allow_plaintext)
    if config.network.chosen_compression != config.network.compression:
        logger.warning(
            "%s: network.compression: auto chooses none without allow_lossy, as every other codec loses precision; "
            "say allow_lossy: true, or compression: none",
            cluster.coordinator,
        )
    return cluster_settings(config, cluster.state or default_cluster_dir())


def _tell_token_maker(cluster: ClusterSettings) -> None:
    """`distllm token` may be called at once. What cannot be written is told when the coordinator needs it."""
    with suppress(ClusterStateError, OSError):
        write_encryption(Path(cluster.state_dir), is_encrypted=cluster.is_encrypted)
        CoordinatorAddress(cluster.host, cluster.port).write(Path(cluster.state_dir))


def _num_ranks(engine: EngineSection, checkpoint: Path, launched: LaunchedRanks | None) -> int | None:
    """As many as were launched, else what the setting says; where that says nothing, what it was converted for.

    Raises CheckpointError where they differ.
    """
    if launched is not None:
        return choose_size(checkpoint, launched.size)
    asked = None if engine.tensor_parallel_size == "auto" else engine.tensor_parallel_size
    is_set = "tensor_parallel_size" in engine.model_fields_set
    return choose_size(checkpoint, asked if is_set else None) or asked


def _gib_to_bytes(amount: float | None) -> int | None:
    return None if amount is None else int(amount * 2**30)


async def _serve(
    settings: Settings,
    checkpoint: Path,
    listener: socket.socket,
    launched: LaunchedRanks | None,
    log: StreamLog | None,
) -> None:
    """Start the engine and, while it loads, the tokenizer and HTTP. Raises what keeps the server from starting."""
    started_s = time.monotonic()
    asyncio.get_running_loop().set_exception_handler(QuietAccept())
    max_connections = int(_CONNECTIONS_A_DESCRIPTOR * raise_descriptor_limit())
    bar = LoadingBar()
    start = start_message(settings, checkpoint, launched=launched, numerics=None if log is None else log.numerics)
    if start.engine.cluster is not None:
        _tell_token_maker(start.engine.cluster)
    engine = serving_engine(settings, start, bar)
    async with show_cluster(settings.cluster, engine):
        await engine.start()
        try:
            app = await asyncio.to_thread(_build_app, settings, checkpoint, engine, log)
            config = http_config(app, ConnectionSettings(max_connections=max_connections))
            http = DrainingServer(config, engine, settings.server.drain_s)
            async with app.state.service.streams:
                serving = asyncio.create_task(http.serve([listener]), name="http")
                ready = asyncio.create_task(engine.wait_ready(), name="wait-ready")
                await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
                bar.close()
                if ready.done():
                    await _announce(ready, engine, url_of(listener), time.monotonic() - started_s, http)
                await serving
                ready.cancel()
        finally:
            await engine.stop()


async def _announce(
    ready: "asyncio.Task[None]", engine: ServingEngine, url: str, start_s: float, http: DrainingServer
) -> None:
    """Say that requests are welcome. Raises EngineUnavailable where the engine could not start."""
    try:
        await ready
    except EngineUnavailable:
        http.should_exit = True
        raise
    info = engine.info
    sys.stdout.write(
        f"{info.model_type} in {info.dtype} on {info.device} ({info.kernels}), "
        f"{info.num_blocks * info.block_size} tokens of KV cache, {info.max_model_len} a request\n"
        f"ready at {url} after {start_s:.1f} s\n"
    )
    sys.stdout.flush()


def _open_log(settings: Settings) -> AbstractContextManager[StreamLog | None]:
    """What outlives this server of its streams, where a folder for it is named. Raises StreamLogUnusable."""
    state = settings.cluster.state
    return nullcontext() if state is None else open_log(state.expanduser())


def _build_app(settings: Settings, checkpoint: Path, engine: ServingEngine, log: StreamLog | None) -> FastAPI:
    tokenizer, recommended = load_text_side(settings, checkpoint)
    defaults = asdict(recommended)
    max_tokens = defaults.pop("max_new_tokens")
    front_end = FrontEndSettings(
        model_names=settings.server.served_model_name or (model_name(settings),),
        api_keys=settings.server.api_key,
        max_body_bytes=int(settings.server.max_body_mb * 2**20),
        keep_alive_s=settings.server.keep_alive_s,
        stall_s=settings.server.stall_s,
        max_live=settings.scheduler.max_num_seqs + settings.scheduler.max_waiting,
        resuming=ResumeSettings(
            grace_s=settings.server.resume_grace_s,
            are_all_resumable=settings.server.resumable_streams == "all",
            max_streams=settings.server.max_kept_streams,
            max_bytes=int(settings.server.kept_streams_mb * 2**20),
        ),
        max_running=settings.scheduler.max_num_seqs,
        token_budget=settings.scheduler.max_num_batched_tokens,
        route=only_route(settings),
        target=latency_target(settings),
    )
    return create_app(engine, tokenizer, front_end, SamplingDefaults(max_tokens=max_tokens, **defaults), log)


def load_text_side(settings: Settings, checkpoint: Path) -> tuple[Tokenizer, GenerationDefaults]:
    """What needs no engine: the tokenizer, and the sampling and end tokens that the checkpoint recommends.

    Raises TokenizerError or CheckpointError.
    """
    tokenizer = Tokenizer.load(checkpoint, settings.model.chat_template)
    return tokenizer, load_generation_defaults(checkpoint, tokenizer.eos_token_id)


def model_name(settings: Settings) -> str:
    """The name in the API: what the user asked for, as written."""
    return settings.model.model or EMBEDDED_MODEL_NAME
