"""What a peer's program is started with."""

from dataclasses import dataclass

from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.transport.client import Address
from distllm.engine.pipeline.weights.folders import WeightFolders
from distllm.engine.quantization.config import QuantizationWish


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStart:
    """`directory` holds the identity, `weights` say what stages are loaded from, `here` what they run on.

    `here` leaves its model open, and how that is quantized, which is what the coordinator says: `quantization` is
    what this peer tells it to wish. Others reach the peer at `host`:`port`, or at the port that it listens on where
    `port` is 0. It listens there too, unless `listen` is another host and port.
    """

    coordinator: Address
    directory: str
    here: EngineConfig
    weights: WeightFolders
    quantization: QuantizationWish | None = None
    host: str
    port: int
    listen: tuple[str, int] | None = None
    log_level: str
    max_message_bytes: int = 64 << 20
