"""The engines that settings ask for: one, or with --mode hybrid one here and one over the peers."""

from dataclasses import replace

import msgspec

from distllm.engine.pipeline.placement.routing import LatencyTarget, Route
from distllm.scheduler.client import EngineClient
from distllm.scheduler.messages import StartEngine
from distllm.server.config import Settings
from distllm.server.loading_bar import LoadingBar
from distllm.server.routing.hybrid_engine import HybridEngine
from distllm.server.routing.route import EngineRoute

ServingEngine = EngineClient | HybridEngine


def serving_engine(settings: Settings, start: StartEngine, bar: LoadingBar) -> ServingEngine:
    """Not started yet. `start` is for an engine that does all that the settings say."""
    if settings.cluster.mode == "single":
        return EngineClient(start, bar, step_timeout_s=settings.engine.step_timeout_s)
    here = msgspec.structs.replace(start, engine=replace(start.engine, cluster=None))
    over_peers = msgspec.structs.replace(start, engine=replace(start.engine, launched=None))
    members = [
        _member(settings, _here(settings), here, bar),
        _member(settings, "pipeline", over_peers, LoadingBar(is_alone=False)),
    ]
    return HybridEngine(members, latency_target(settings), settings.routing.patience_s)


def only_route(settings: Settings) -> Route:
    """The name of the engine where there is one."""
    return _here(settings) if settings.cluster.coordinator is None else "pipeline"


def latency_target(settings: Settings) -> LatencyTarget:
    return LatencyTarget(settings.routing.target_ttft_s, settings.routing.target_tpot_s)


def _here(settings: Settings) -> Route:
    return "local" if settings.engine.offload == "none" else "offload"


def _member(
    settings: Settings, name: Route, start: StartEngine, bar: LoadingBar
) -> tuple[EngineRoute, EngineClient]:
    client = EngineClient(start, bar, step_timeout_s=settings.engine.step_timeout_s)
    scheduler = start.scheduler
    limits = (scheduler.max_num_seqs, scheduler.max_live_requests, scheduler.max_num_batched_tokens)
    return EngineRoute(name, client, *limits), client
