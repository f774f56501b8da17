"""A cluster at one moment, as plain values: what its page and its metrics show. Importable without torch."""

from collections.abc import Callable
from typing import Literal

import msgspec

from distllm.engine.pipeline.wire.codec_names import CodecName

PeerState = Literal["serving", "spare", "unusable", "joining", "gone", "removed"]
"""In the pipeline; with layers loaded to take a lost one's place; connected, but passed over for what its `trouble`
says; with no layers yet; not connected; put out of the cluster."""


EventKind = Literal[
    "joined", "refused", "connected", "gone", "failed", "suspected", "planned", "recovered", "rounding"
]


class ClusterEvent(msgspec.Struct, frozen=True):
    """`time_s` is time.time(). `duration_ms` is how long no step could run, where a recovery ended that."""

    time_s: float
    kind: EventKind
    text: str
    peer_id: str | None = None
    duration_ms: float | None = None


class StageSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Layers [begin, end) and who serves them. `num_blocks` are the KV blocks that its memory affords.

    `quantization` names how its weights are quantized, such as w8, None where they are not; `num_ranks` processes
    share it. `step_s` is the mean of the latest steps, None before the first; `predicted_step_s` what was predicted
    of a step that decodes one token, None where that is not known.
    """

    peer_id: str
    begin: int
    end: int
    numerics: str
    quantization: str | None
    num_ranks: int
    num_blocks: int
    kv_block_bytes: int
    weight_bytes: int
    step_s: float | None
    predicted_step_s: float | None = None


class PeerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A peer. `stage` is its place in the pipeline, `loaded` the layer ranges [begin, end) that it has in memory.

    `busy_s` is how long it has been computing its present step, `beat_age_s` how long ago it was heard,
    `round_trip_s` what a beat takes to the coordinator and back. `trouble` is why others are used before it, or
    what it cannot load; `removed_s` when it was put out, by time.time(). `_total` fields count since it was
    started.
    """

    peer_id: str
    address: str
    state: PeerState
    stage: int | None
    loaded: list[tuple[int, int]]
    trouble: str | None
    beat_age_s: float
    busy_s: float
    free_bytes: int
    step_s: float | None
    round_trip_s: float | None
    steps_total: int
    compute_s_total: float
    sent_bytes_total: int
    removed_s: float | None = None


class LinkSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """From one stage to the next: the mean seconds until a frame was taken, and the goodput while frames were sent.

    Both are of the latest frames, None before the first. `delay_s` and `goodput_bytes_per_s` are what was measured
    one way beforehand, None where it was not. Where it `is_relayed`, frames go through the coordinator.
    """

    source: str
    target: str
    codec: CodecName = "none"
    is_relayed: bool = False
    frame_s: float | None
    bytes_per_s: float | None
    delay_s: float | None = None
    goodput_bytes_per_s: float | None = None


class PredictionSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What was predicted of the plan that serves: of a single stream, and of the load that is expected."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    binding_limit: str


class ClusterSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """`time_s` is time.time(). `stages` are those of the present plan, or of the last where none fits.

    `waiting` says why no plan fits; it is None also while a new one is being put in place. `epoch` is None before
    the first plan. `events` are the newest first. `predicted` is None where peers are not measured.
    """

    time_s: float
    epoch: int | None
    is_serving: bool
    waiting: str | None
    num_stages: int
    num_layers: int
    num_in_flight: int
    rebuilt_tokens_total: int
    recoveries_total: int
    recovery_s_total: float
    last_recovery_s: float | None
    stages: list[StageSnapshot]
    peers: list[PeerSnapshot]
    links: list[LinkSnapshot]
    events: list[ClusterEvent]
    predicted: PredictionSnapshot | None = None


OnCluster = Callable[[ClusterSnapshot], None]
"""Takes the cluster's state, about once a second and whenever something happens. May block, may not raise."""
