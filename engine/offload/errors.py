"""What keeps layers from being offloaded. Never imports torch."""

from distllm.engine.config import EngineConfig


class OffloadError(ValueError):
    """Offloading cannot work so; the message is one line that names the remedy."""


def check_offload(config: EngineConfig, device: str) -> None:
    """Raises OffloadError for what cannot be offloaded so; `device` as "cpu"."""
    if config.offload == "cpu" and device == "cpu":
        raise OffloadError("--offload cpu frees a GPU's memory, and the model runs on the CPU: use --offload disk")
