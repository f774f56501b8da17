"""All that a plan follows from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distllm.engine.pipeline.coordinator.division import Layers, Seat, plan_of
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, PeerId
from distllm.engine.pipeline.placement.plan import Workload
from distllm.engine.pipeline.placement.plan_record import predict_serving
from distllm.engine.pipeline.placement.prediction import Prediction
from distllm.engine.pipeline.placement.what_if import without_peer
from distllm.engine.quantization.config import QuantizationConfig


@dataclass(frozen=True, slots=True)
class Present:
    """Whom the pipeline could use now, and who has a seat.

    `num_blocks` are those of its KV pool, 0 before it has one; `reload_s` is how long loading stages took.
    `quantization` is that of each layer, None while that is for the peers to say.
    """

    peer_ids: tuple[str, ...]
    serving: tuple[Seat, ...] = ()
    num_blocks: int = 0
    reload_s: float = 0.0
    quantization: tuple[QuantizationConfig | None, ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every stage is served."""
        return bool(self.serving) and all(seat.peer in self.peer_ids for seat in self.serving)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a plan follows from. `refused` are layers that peers could not load a moment ago, and why."""

    present: Present
    refused: dict[tuple[str, Layers], str]
    cluster: Cluster
    workload: Workload
    num_stages: int | None
    is_settled: bool

    @property
    def served(self) -> Prediction | None:
        """What is predicted of the plan that serves; None where none does, or that is not known."""
        return self.predicted(self.present.serving) if self.present.is_whole else None

    @property
    def num_measured(self) -> int:
        """Peers of whom layers are timed, and the ways from and to the coordinator."""
        ways = {(link.source, link.target) for link in self.cluster.links}
        peer_ids = [peer.peer_id for peer in self.cluster.peers]
        return sum({(COORDINATOR, peer_id), (peer_id, COORDINATOR)} <= ways for peer_id in peer_ids)

    def predicted(self, seats: Sequence[Seat]) -> Prediction | None:
        """Of seats that are all taken; None where that is not known."""
        return predict_serving(self.cluster, plan_of(seats), self.workload)

    def refuses(self, seats: Sequence[Seat]) -> bool:
        """Whether a peer could not load its layers."""
        return any((str(seat.peer), seat.layers) in self.refused for seat in seats)

    @property
    def among_willing(self) -> "Situation":
        """As if the peers that could not load some layers were not there."""
        cluster = self.cluster
        for peer in {peer for peer, _ in self.refused}:
            cluster = without_peer(cluster, PeerId(peer))
        return replace(self, cluster=cluster)
