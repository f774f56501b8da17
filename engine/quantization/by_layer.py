"""How the layers of a stage are quantized where that differs between them. Importable without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from distllm.engine.quantization.config import QuantizationConfig


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Layers that follow each other and are quantized alike; with None they are as they are stored."""

    num_layers: int
    config: QuantizationConfig | None

    @property
    def name(self) -> str:
        """Such as 2xw8 or 3xstored."""
        return f"{self.num_layers}x{'stored' if self.config is None else self.config.name}"


def runs_of(configs: Sequence[QuantizationConfig | None]) -> tuple[LayerRun, ...]:
    """Of layers one after the other."""
    return tuple(LayerRun(len([*equal]), config) for config, equal in groupby(configs))


def by_layer(runs: Sequence[LayerRun]) -> Iterator[QuantizationConfig | None]:
    """Of each layer."""
    for run in runs:
        yield from [run.config] * run.num_layers
