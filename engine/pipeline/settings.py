"""How a cluster is run: plain values, importable without torch."""

from dataclasses import dataclass

from distllm.engine.pipeline.placement.plan import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Where the coordinator listens and what it expects of its peers.

    A model is divided over `num_stages` peers, or over as many as serve `objective` best, of the load that is
    expected; any others wait to take the place of one that fails. It is served once `min_peers` are here.
    `state_dir` holds the cluster's authority, its tokens and its plan. A peer that is silent for `silence_s` counts
    as lost.
    """

    host: str
    port: int
    state_dir: str
    num_stages: int | None = None
    objective: Objective = "throughput"
    expected_streams: int = 8
    expected_prompt_tokens: int = 512
    expected_output_tokens: int = 256
    min_peers: int = 1
    max_peers: int = 16
    beat_s: float = 0.25
    max_message_bytes: int = 64 << 20

    @property
    def silence_s(self) -> float:
        return 3 * self.beat_s
