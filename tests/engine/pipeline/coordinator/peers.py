"""Members of a cluster as a coordinator knows them, without machines: what they are told ends in queues."""

from dataclasses import dataclass, field

import msgspec

from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.model_sample import ModelSample
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.messages import (
    Endpoint,
    LayerSample,
    Measure,
    Measured,
    Probed,
    ProbeLinks,
    StageConfig,
    ToPeer,
)
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Link, ModelSizes, PeerId, RowTimes
from distllm.engine.pipeline.placement.measuring import MEASURED_ROWS, ComputeTimes
from distllm.engine.pipeline.security import peer_id as certified
from distllm.engine.pipeline.wire.frame import decode_frame
from distllm.engine.quantization.config import QuantizationConfig
from tests.engine.pipeline.placement.clusters import model

GIB = 1 << 30
_decode = msgspec.msgpack.Decoder(ToPeer)

WHOLE = StageConfig(
    model="m",
    fingerprint="",
    begin=0,
    end=8,
    num_layers=8,
    dtype="float32",
    kv_cache_dtype="auto",
    quantization=None,
    max_model_len=1024,
    max_num_seqs=64,
    max_num_batched_tokens=256,
)
SAMPLE = ModelSample(
    whole=WHOLE,
    vocab_size=100,
    sizes=model(8),
    kv_token_bytes=1,
    activation_bytes=1000,
    sample=LayerSample(stage=msgspec.structs.replace(WHOLE, begin=7), width=64, config_json=b"{}", tensors=()),
    other_sizes={
        QuantizationConfig.named("int8"): ModelSizes((40,) * 8, 20, 20, hidden_size=8, activation_bytes=16),
    },
)


def times(layer_s: float) -> ComputeTimes:
    """A layer's, and as many of the head; each row costs as much as the first, so that micro-batches pay."""
    rising = RowTimes(MEASURED_ROWS, tuple(layer_s * rows for rows in MEASURED_ROWS))
    return ComputeTimes(rising, rising, layer_s / 10)


@dataclass(slots=True)
class Peers:
    """`answer` what the survey asks, with links of `delay_s`; layers take `layer_s` by name."""

    delay_s: float = 0.0001
    members: Members = field(default_factory=Members)
    survey: Survey = field(init=False)
    free_bytes: dict[certified.PeerId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.survey = Survey(self.members, SAMPLE)

    def join(self, name: str, boot: str = "1", free_bytes: int = GIB) -> Member:
        member = self.members[certified.PeerId(name)]
        member.begin_link()
        member.begin_boot(boot, Endpoint(peer_id=name, host="127.0.0.1", port=1), free_bytes)
        self.free_bytes[member.peer_id] = free_bytes
        return member

    def measured(self, member: Member, layer_s: float) -> Measured:
        return Measured(times=times(layer_s), free_bytes=self.free_bytes[member.peer_id])

    def leave(self, member: Member) -> None:
        member.outbound = member.endpoint = None

    def told(self, member: Member) -> list[ToPeer]:
        """What the member was told since the last call."""
        messages = []
        while member.outbound is not None and not member.outbound.empty():
            frame = member.outbound.get_nowait()
            assert frame is not None
            messages.append(decode_frame(frame, len(frame)).header(_decode))
        return messages

    def answer(self, member: Member, layer_s: float) -> list[ToPeer]:
        """Answer all that the member was told."""
        told = self.told(member)
        for message in told:
            if isinstance(message, Measure):
                self.survey.take(member, self.measured(member, layer_s))
            elif isinstance(message, ProbeLinks):
                self.survey.take(member, self.probed(member, message))
        return told

    def probed(self, member: Member, request: ProbeLinks) -> Probed:
        here = PeerId(member.peer_id)
        pairs = [(here, PeerId(endpoint.peer_id)) for endpoint in request.to_peers]
        if request.to_coordinator:
            pairs += [(here, COORDINATOR), (COORDINATOR, here)]
        return Probed(links=tuple(Link(*pair, self.delay_s, 1e9) for pair in pairs), unreachable={})

    def settle(self, layer_s: dict[str, float]) -> None:
        """Have the survey ask, and everybody answer, until all is known."""
        for _ in range(3 * len(layer_s) + 3):
            self.survey.ask()
            for name, seconds in layer_s.items():
                self.answer(self.members[certified.PeerId(name)], seconds)
