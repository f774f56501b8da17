"""What an engine is to load and on what: plain values, importable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """`model` is a local checkpoint directory."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
