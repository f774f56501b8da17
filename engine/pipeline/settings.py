"""How a cluster is run: plain values, importable without torch."""

from dataclasses import dataclass

from distllm.engine.pipeline.patience import USUAL, Patience
from distllm.engine.pipeline.placement.plan import Objective
from distllm.engine.pipeline.wire.codec_names import Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Where the coordinator listens and what it expects of its peers.

    A model is divided over `num_stages` peers, or over as many as serve `objective` best, of the load that is
    expected; any others wait to take the place of one that fails. It is served once `min_peers` are here. It is
    planned anew while it is served if that gives `replan_gain` more, as a part of what the present plan gives.
    `state_dir` holds the cluster's authority, its tokens and its plan. A peer that is silent for `silence_s` counts
    as lost. `patience` is for all other calls but steps, which are repeated for as long as they are wanted.
    Activations travel in `compression`; `auto` may choose one that loses precision.
    """

    host: str
    port: int
    state_dir: str
    num_stages: int | None = None
    objective: Objective = "throughput"
    expected_streams: int = 8
    expected_prompt_tokens: int = 512
    expected_output_tokens: int = 256
    replan_gain: float = 0.2
    min_peers: int = 1
    max_peers: int = 16
    beat_s: float = 0.25
    patience: Patience = USUAL
    max_message_bytes: int = 64 << 20
    compression: Compression = "none"
    is_encrypted: bool = True

    @property
    def silence_s(self) -> float:
        return 3 * self.beat_s
