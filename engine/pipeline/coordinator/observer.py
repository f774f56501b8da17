"""Looks at the coordinator's books, and tells of them. Changes nothing."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from itertools import pairwise

from distllm.engine.numerics import quantization_of
from distllm.engine.pipeline.coordinator.events import EventLog, printable
from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.pipeline import Pipeline
from distllm.engine.pipeline.coordinator.routes import Route
from distllm.engine.pipeline.coordinator.snapshot import (
    ClusterSnapshot,
    LinkSnapshot,
    OnCluster,
    PeerSnapshot,
    PeerState,
    PredictionSnapshot,
    StageSnapshot,
)
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.coordinator.status import PipelineStatus
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.placement.prediction import Prediction
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.state_dir import ClusterStateError

logger = logging.getLogger("distllm.pipeline")

_EVERY_S = 1.0
_MAX_WAITING_LEN = 1000
_GONE_SHOWN_S = 600.0
"""How long a peer that has gone is still told of."""


class Observer:
    """Of one coordinator, in its event loop."""

    def __init__(
        self,
        members: Members,
        survey: Survey,
        pipeline: Pipeline,
        whole: StageConfig,
        num_needed: int,
        events: EventLog,
        removed: RemovedPeers,
    ) -> None:
        self._members = members
        self._survey = survey
        self._num_layers, self._num_needed = whole.num_layers, num_needed
        self._pipeline = pipeline
        self._events = events
        self._removed = removed

    @contextlib.asynccontextmanager
    async def reporting(self, on_cluster: OnCluster) -> AsyncIterator[None]:
        """Tell of the cluster about once a second, and whenever something happens, until the block is left."""
        task = asyncio.create_task(self._report_forever(on_cluster))
        task.add_done_callback(_log_failure)
        try:
            yield
        finally:
            task.cancel()

    async def _report_forever(self, on_cluster: OnCluster) -> None:
        while True:
            await asyncio.to_thread(on_cluster, self.observe())  # a front end that is slow to read stops no beat
            await self._events.wait_for_news(_EVERY_S)

    def observe(self) -> ClusterSnapshot:
        events, status = self._events, self._pipeline.status
        stages = status.stages
        with contextlib.suppress(ClusterStateError):  # the reception says so
            self._removed.current()
        return ClusterSnapshot(
            time_s=time.time(),
            epoch=status.epoch,
            is_serving=status.is_serving,
            waiting=None if status.waiting is None else printable(status.waiting, _MAX_WAITING_LEN),
            num_stages=max(self._num_needed, len(stages)),
            num_layers=self._num_layers,
            num_in_flight=status.num_in_flight,
            rebuilt_tokens_total=status.rebuilt_tokens_total,
            recoveries_total=events.recoveries_total,
            recovery_s_total=events.recovery_s_total,
            last_recovery_s=events.last_recovery_s,
            stages=[self._stage(stage, status.predicted) for stage in stages],
            peers=[self._peer(member, status) for member in self._members.heard_since(_GONE_SHOWN_S)],
            links=[
                self._link(source.peer_id, target.peer_id, route)
                for (source, target), route in zip(pairwise(stages), status.routes[1:], strict=True)
            ],
            events=events.recent(),
            predicted=None if status.predicted is None else _in_short(status.predicted),
        )

    def _stage(self, stage: Stage, predicted: Prediction | None) -> StageSnapshot:
        member = self._members[stage.peer_id]
        steps_s = {} if predicted is None else {str(it.peer_id): it.decode_s for it in predicted.stages}
        return StageSnapshot(
            peer_id=stage.peer_id,
            begin=stage.config.begin,
            end=stage.config.end,
            numerics=printable(stage.info.numerics),
            quantization=_printable(quantization_of(stage.info.numerics)),
            num_ranks=stage.info.num_ranks,
            num_blocks=stage.info.num_blocks,
            kv_block_bytes=stage.info.kv_block_bytes,
            weight_bytes=stage.info.weight_bytes,
            step_s=member.workload.step_s,
            predicted_step_s=steps_s.get(str(stage.peer_id)),
        )

    def _peer(self, member: Member, status: PipelineStatus) -> PeerSnapshot:
        peers = [stage.peer_id for stage in status.stages]
        seat = peers.index(member.peer_id) if member.peer_id in peers else None
        endpoint, workload = member.endpoint, member.workload
        removed_at = self._removed.since(member.peer_id)
        return PeerSnapshot(
            peer_id=member.peer_id,
            address="" if endpoint is None else f"{printable(endpoint.host)}:{endpoint.port}",
            state=_state(member, status.is_serving and seat is not None, removed_at is not None),
            stage=seat,
            loaded=sorted((config.begin, config.end) for config in member.loaded),
            trouble=_printable(member.trouble or _what_is_refused(member)),
            beat_age_s=member.silent_s,
            busy_s=member.busy_s,
            free_bytes=member.free_bytes,
            step_s=workload.step_s,
            round_trip_s=workload.round_trip_s,
            steps_total=workload.work.num_steps,
            compute_s_total=workload.work.compute_s,
            sent_bytes_total=workload.work.sent_bytes,
            removed_s=None if removed_at is None else removed_at.timestamp(),
        )

    def _link(self, source: PeerId, target: PeerId, route: Route) -> LinkSnapshot:
        workload = self._members[source].workload
        measured = self._survey.link(self._members[source], self._members[target])
        return LinkSnapshot(
            source=source,
            target=target,
            codec=route.codec,
            is_relayed=not route.is_direct,
            frame_s=workload.frame_s,
            bytes_per_s=workload.bytes_per_s,
            delay_s=None if measured is None else measured.delay_s,
            goodput_bytes_per_s=None if measured is None else measured.bytes_per_s,
        )


def _in_short(prediction: Prediction) -> PredictionSnapshot:
    return PredictionSnapshot(
        ttft_s=prediction.ttft_s,
        tpot_s=prediction.tpot_s,
        tokens_per_s=prediction.tokens_per_s,
        binding_limit=prediction.binding_limit,
    )


def _log_failure(task: "asyncio.Task[None]") -> None:
    """The cluster serves on where nobody can watch it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the cluster is not told of any more", exc_info=error)


def _printable(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _state(member: Member, is_serving: bool, is_removed: bool) -> PeerState:
    if is_removed:
        return "removed"
    if not member.is_connected:
        return "gone"
    if is_serving:
        return "serving"
    if member.standing.is_blamed or (not member.loaded and _what_is_refused(member) is not None):
        return "unusable"
    return "spare" if member.loaded else "joining"


def _what_is_refused(member: Member) -> str | None:
    """A stage that the peer says it cannot load, and why."""
    for config, reason in member.refusals.believed():
        return f"cannot load [{config.begin}, {config.end}): {reason}"
    return None
