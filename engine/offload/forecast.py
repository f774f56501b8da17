"""What offloading would make of a checkpoint, told from its headers. Never imports torch."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distllm.engine.checkpoint import Checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.offload.disk_file import DEFAULT_DIRECTORY
from distllm.engine.offload.disk_rate import measure_disk_rate
from distllm.engine.offload.residency import Division, divide_memory
from distllm.engine.pool_size import PoolNeed

_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
_SAMPLE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class OffloadForecast:
    """Which layers would stream, and at what rate if that is known."""

    num_layers: int
    division: Division
    origin: str
    bytes_per_s: float | None

    @property
    def step_s(self) -> float | None:
        """What no step can be faster than; None where the rate is not known."""
        return None if self.bytes_per_s is None else self.division.residency.streamed_bytes / self.bytes_per_s


def forecast_offload(
    checkpoint: Checkpoint, config: EngineConfig, need: PoolNeed, sizes: Mapping[str, int], free: int
) -> OffloadForecast | None:
    """None where `config` does not ask for it. `sizes` are the bytes of stored tensors as they are served.

    Measures the disk. Raises OutOfMemory or OffloadError.
    """
    if config.offload == "none":
        return None
    layers = layer_bytes(checkpoint, sizes)
    other_bytes = sum(sizes.values()) - sum(layers)
    division = divide_memory(config, need, layers, other_bytes, max(0, free - other_bytes))
    if config.offload == "cpu" or not division.residency.streamed:
        return OffloadForecast(len(layers), division, "host memory", None)
    directory = Path(config.offload_dir or DEFAULT_DIRECTORY)
    return OffloadForecast(len(layers), division, str(directory), measure_disk_rate(directory, _SAMPLE_BYTES))


def layer_bytes(checkpoint: Checkpoint, sizes: Mapping[str, int]) -> list[int]:
    """Bytes of each decoder layer's matrices, in order; `sizes` as forecast_offload takes them."""
    layers: dict[int, int] = defaultdict(int)
    for name, num_bytes in sizes.items():
        found = _LAYER_NUMBER.search(name)
        if found and len(checkpoint.tensors[name].shape) > 1:
            layers[int(found[1])] += num_bytes
    return [layers[number] for number in sorted(layers)]
