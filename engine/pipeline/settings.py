"""How a cluster is run: plain values, importable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Where the coordinator listens and what it expects of its peers.

    A model is divided over `num_stages` peers; any others wait to take the place of one that fails. `state_dir`
    holds the cluster's authority and its tokens. A peer that is silent for `silence_s` counts as lost.
    """

    host: str
    port: int
    state_dir: str
    num_stages: int = 1
    max_peers: int = 16
    beat_s: float = 0.25
    max_message_bytes: int = 64 << 20

    @property
    def silence_s(self) -> float:
        return 3 * self.beat_s
