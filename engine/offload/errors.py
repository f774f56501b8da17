"""What keeps layers from being offloaded. Never imports torch."""

from distllm.engine.config import OffloadName


class OffloadError(ValueError):
    """Offloading cannot work so; the message is one line that names the remedy."""


def check_device(offload: OffloadName, device: str) -> None:
    """Raises OffloadError where layers would wait in the memory that they are to leave; `device` as "cpu"."""
    if offload == "cpu" and device == "cpu":
        raise OffloadError("--offload cpu frees a GPU's memory, and the model runs on the CPU: use --offload disk")
