"""What a coordinator and its peers tell each other, beside activations. Every message is one frame."""

from typing import Final

import msgspec

from distllm.engine.config import DtypeName, KvCacheDtypeName
from distllm.engine.interface import ExecutorInfo, StepOutput
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.patience import USUAL, Patience
from distllm.engine.pipeline.placement.measurements import Link
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pipeline.wire.codec_choice import CodecCost
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.engine.quantization.by_layer import LayerRun
from distllm.engine.quantization.config import QuantizationConfig, QuantizationWish

CONTROL: Final = 1
"""Kind of the frames whose header is one of the messages below."""
STEP: Final = 2
"""Kind of the frames with a StepHeader, and the activations of its tokens unless for the first stage."""


LINK_PATH: Final = "/v1/link"
"""The stream of what the coordinator tells a peer."""
BULK_PATH: Final = "/v1/bulk"
"""A stream beside it, of steps that are so large that messages would wait for them."""


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Any message but steps."""


class StageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to load: layers [begin, end) of `num_layers`, and how.

    `layer_quantization` is in place of `quantization` where layers differ. `numerics` None: what is fastest there.
    """

    model: str
    fingerprint: str
    begin: int
    end: int
    num_layers: int
    dtype: DtypeName
    kv_cache_dtype: KvCacheDtypeName
    quantization: QuantizationConfig | None
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    numerics: str | None = None
    layer_quantization: tuple[LayerRun, ...] = ()


class StoredSample(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor as its safetensors header describes it, with its `content` where that tells how to read others."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: bytes | None = None


class LayerSample(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's last layer and its head are stored: these are as fast with any weights.

    `config_json` is the whole model's. Activations of a token are `width` numbers.
    """

    stage: StageConfig
    width: int
    config_json: bytes
    tensors: tuple[StoredSample, ...]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a peer listens."""

    peer_id: str
    host: str
    port: int


# From the coordinator to a peer.


class Welcome(Message, frozen=True, kw_only=True):
    """The coordinator's first words on every link: how often it wants to hear of a peer, in seconds.

    `patience` is for the calls that the peer makes, those of `removed` peers are not to be answered.
    """

    version: int
    beat_s: float
    patience: Patience = USUAL
    removed: frozenset[str] = frozenset()


class Load(Message, frozen=True, kw_only=True):
    """Load a stage beside those that are loaded."""

    config: StageConfig


class Keep(Message, frozen=True, kw_only=True):
    """Give back the memory of all stages but these."""

    configs: list[StageConfig]


class Fence(Message, frozen=True, kw_only=True):
    """Leave all earlier epochs, and be stage `number` of this one, with a KV pool of `num_blocks`.

    Steps come from `predecessor`, None for the coordinator, with activations in `codec_in`. They go on in
    `codec_out` to `successor`, None for the tail, through the coordinator where that `is_relayed`.
    """

    epoch: int
    config: StageConfig
    number: int
    num_blocks: int
    predecessor: str | None
    successor: Endpoint | None
    codec_in: CodecName = "none"
    codec_out: CodecName = "none"
    is_relayed: bool = False


class Measure(Message, frozen=True, kw_only=True):
    """Time a layer and the head, unless you have before."""

    sample: LayerSample


class ProbeLinks(Message, frozen=True, kw_only=True):
    """Probe the ways to and from the coordinator, or to these peers."""

    to_coordinator: bool
    to_peers: tuple[Endpoint, ...]


class Removed(Message, frozen=True, kw_only=True):
    """Answer no calls of these, which were put out of the cluster."""

    peer_ids: frozenset[str]


class Dismiss(Message, frozen=True, kw_only=True):
    """Leave the cluster, and say `reason` to the operator."""

    reason: str


# From a peer to the coordinator.


class Hello(Message, frozen=True, kw_only=True):
    """A peer's first words on every link. `boot` tells one that was started anew from one that was away.

    `quantization` is how it would have its layers, None as the coordinator has it.
    """

    version: int
    boot: str
    endpoint: Endpoint
    free_bytes: int
    quantization: QuantizationWish | None = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer has done since it was started: counters, so that a beat that is lost takes nothing with it.

    Steps and the seconds they were computed, frames for the next stage, their bytes, and the seconds until each
    was taken.
    """

    num_steps: int = 0
    compute_s: float = 0.0
    num_sent: int = 0
    sent_bytes: int = 0
    send_s: float = 0.0


class Beat(Message, frozen=True, kw_only=True):
    """That a peer runs; `busy_s` is how long it has been computing its present step, 0 where it has none.

    `round_trip_s` is what the beat before took to the coordinator and back.
    """

    boot: str
    busy_s: float
    work: Work = Work()
    free_bytes: int | None = None
    round_trip_s: float | None = None


class Loading(Message, frozen=True, kw_only=True):
    """How far loading is, from 0 to 1."""

    config: StageConfig
    activity: str
    done: float


class Loaded(Message, frozen=True, kw_only=True):
    """A stage is ready. `info.num_blocks` are what its memory affords."""

    config: StageConfig
    info: ExecutorInfo


class LoadFailed(Message, frozen=True, kw_only=True):
    """A stage cannot be loaded; `reason` is for the operator."""

    config: StageConfig
    reason: str


class StageLost(Message, frozen=True, kw_only=True):
    """A stage that was loaded is not there any more, though its peer is; it may be loaded anew."""

    config: StageConfig
    reason: str


class Fenced(Message, frozen=True, kw_only=True):
    """The peer has left all epochs before this one."""

    epoch: int


class FenceFailed(Message, frozen=True, kw_only=True):
    """The peer cannot be the stage that it was told to be."""

    epoch: int
    reason: str


class Result(Message, frozen=True, kw_only=True):
    """What the last stage made of a step."""

    epoch: int
    number: int
    output: StepOutput


class EdgeDown(Message, frozen=True, kw_only=True):
    """A stage cannot hand its activations on: there is no way to its successor, or that refuses them."""

    epoch: int
    successor: str
    reason: str
    is_refusal: bool = False


class Received(Message, frozen=True, kw_only=True):
    """What a stage made of a step that was relayed to it."""

    epoch: int
    number: int
    status: Status


class Measured(Message, frozen=True, kw_only=True):
    """What a layer and the head take on this peer, what codecs of activations cost there, and the memory that was
    free before it loaded anything."""

    times: ComputeTimes
    free_bytes: int
    codecs: dict[CodecName, CodecCost] = {}


class MeasureFailed(Message, frozen=True, kw_only=True):
    """A layer of the model could not be timed."""

    reason: str


class Probed(Message, frozen=True, kw_only=True):
    """The links that were asked for, and by end why others cannot be used."""

    links: tuple[Link, ...]
    unreachable: dict[str, str]


ToPeer = Welcome | Load | Keep | Fence | Measure | ProbeLinks | Removed | Dismiss
ToCoordinator = (
    Hello
    | Beat
    | Loading
    | Loaded
    | LoadFailed
    | StageLost
    | Fenced
    | FenceFailed
    | Result
    | EdgeDown
    | Received
    | Measured
    | MeasureFailed
    | Probed
)


class StepHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A NumberedStep on its way: `step` is an encoded StepInput, which stages hand on as it is.

    `codec` is that of the activations with it.
    """

    epoch: int
    number: int
    first_stage: int
    last_stage: int
    is_rebuild: bool
    step: msgspec.Raw
    codec: CodecName = "none"
