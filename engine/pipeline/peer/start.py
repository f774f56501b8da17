"""What a peer's program is started with."""

from dataclasses import dataclass

from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.transport.client import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStart:
    """`directory` holds the identity, `here` says what stages are loaded from and run on."""

    coordinator: Address
    directory: str
    here: EngineConfig
    host: str
    port: int
    log_level: str
    max_message_bytes: int = 64 << 20
