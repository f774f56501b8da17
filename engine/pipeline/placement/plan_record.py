"""What a coordinator knows when it places stages, kept as JSON for `distllm cluster plan` and for dashboards."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from distllm.engine.durable import write_private
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, EdgeCodec, Link, PeerId
from distllm.engine.pipeline.placement.plan import Objective, Plan, Workload
from distllm.engine.pipeline.placement.prediction import Prediction, predict
from distllm.engine.pipeline.placement.search import Found, SearchResult, search_plan
from distllm.engine.pipeline.placement.what_if import WhatIf, if_peer_added, if_peer_lost

_FILE_NAME = "placement.json"


class NoPlanRecord(Exception):
    """There is no record to read; the message says where, and what to do."""


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`cluster` are the peers that are here and measured, `unmeasured` why others that are here cannot be placed.

    `serving` is the plan that serves, if one does, `served` what it was predicted to give. `num_stages` is None
    unless a number was asked for. `written_at` is in UTC.
    """

    written_at: datetime
    model: str
    cluster: Cluster
    workload: Workload
    objective: Objective
    num_stages: int | None
    serving: Plan | None
    served: Prediction | None
    unmeasured: dict[str, str]

    def best(self) -> SearchResult:
        """The best plan for the cluster as it was."""
        return search_plan(self.cluster, self.workload, self.objective, self.num_stages)

    def losses(self, best: SearchResult) -> tuple[WhatIf, ...]:
        """What the best plan would be without each of the peers that have a stage in `best`."""
        if not isinstance(best, Found):
            return ()
        return tuple(self.loss_of(stage.peer_id, best) for stage in best.plan.stages)

    def loss_of(self, peer_id: PeerId, best: SearchResult) -> WhatIf:
        """Raises KeyError for a peer that is not there."""
        return if_peer_lost(self.cluster, self.workload, self.objective, best, peer_id, self.num_stages)

    def another(self, peer_id: PeerId, best: SearchResult) -> WhatIf:
        """With one more peer that is as fast and as large as this one, and as far from all others.

        Raises KeyError for a peer that is not there.
        """
        twin = PeerId(f"{peer_id}-like")
        peer = msgspec.structs.replace(self.cluster.peer(peer_id), peer_id=twin)
        links = [_renamed(link, peer_id, twin) for link in self.cluster.links if _is_end(link, peer_id)]
        codecs = [_renamed(codec, peer_id, twin) for codec in self.cluster.codecs if _is_end(codec, peer_id)]
        links += self._between(peer_id, twin)
        return if_peer_added(
            self.cluster,
            self.workload,
            self.objective,
            best,
            peer,
            tuple(links),
            self.num_stages,
            tuple(codecs),
        )

    def _between(self, peer_id: PeerId, twin: PeerId) -> list[Link]:
        """Both ways between a peer and its like: as the one between it and the coordinator."""
        return [
            msgspec.structs.replace(link, source=source, target=target)
            for link in self.cluster.links
            if (link.source, link.target) == (peer_id, COORDINATOR)
            for source, target in ((peer_id, twin), (twin, peer_id))
        ]


_Edge = TypeVar("_Edge", Link, EdgeCodec)


def _is_end(edge: Link | EdgeCodec, peer_id: PeerId) -> bool:
    return peer_id in (edge.source, edge.target)


def _renamed(edge: _Edge, peer_id: PeerId, twin: PeerId) -> _Edge:
    """The same from or to `twin` in the place of a peer."""
    names = {peer_id: twin}
    source, target = (names.get(end, end) for end in (edge.source, edge.target))
    return msgspec.structs.replace(edge, source=source, target=target)


def predict_serving(cluster: Cluster, serving: Plan | None, workload: Workload) -> Prediction | None:
    """None where nothing serves, or a peer of it is not in the cluster."""
    present = {peer.peer_id for peer in cluster.peers}
    if serving is None or not {stage.peer_id for stage in serving.stages} <= present:
        return None
    try:
        return predict(cluster, serving, workload)
    except ValueError:  # a peer of it is not reached any more
        return None


def write_record(record: PlanRecord, state_dir: Path) -> None:
    """Put it in the place of the one before. Raises OSError."""
    write_private(state_dir / _FILE_NAME, msgspec.json.encode(record))


def read_record(state_dir: Path) -> PlanRecord:
    """Raises NoPlanRecord."""
    path = state_dir / _FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanRecord)
    except FileNotFoundError:
        raise NoPlanRecord(f"{state_dir} holds no {_FILE_NAME}: no coordinator has run with this --state") from None
    except (OSError, msgspec.DecodeError) as error:
        raise NoPlanRecord(f"{path} cannot be read: {error}") from None


def utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
