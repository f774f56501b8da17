"""How each layer is computed for as long as a pipeline lives: what takes over a layer must compute the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from distllm.engine.interface import ExecutorInfo
from distllm.engine.numerics import kernels_of
from distllm.engine.pipeline.coordinator.division import Layers
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.quantization.by_layer import by_layer, runs_of
from distllm.engine.quantization.config import QuantizationConfig, QuantizationWish


@dataclass(frozen=True, slots=True)
class _Layer:
    """Equal for equal bits of one layer."""

    quantization: QuantizationConfig | None
    kernels: str
    num_ranks: int

    def __str__(self) -> str:
        ranks = "" if self.num_ranks == 1 else f" over {self.num_ranks} ranks"
        return f"{'' if self.quantization is None else f'{self.quantization.name}, '}{self.kernels}{ranks}"


class Arithmetic:
    """Of the model `whole`. Peers' wishes decide how layers are quantized until `settle` is called first.

    All stages compute in the order of sums `kernels`, so that any peer can have any layers; None until it is known.
    """

    def __init__(self, whole: StageConfig) -> None:
        self._whole = whole
        self._layers: list[_Layer] = []
        self.kernels = None if whole.numerics is None else kernels_of(whole.numerics)

    @property
    def quantization(self) -> tuple[QuantizationConfig | None, ...] | None:
        """Of each layer; None until that is settled."""
        return tuple(layer.quantization for layer in self._layers) or None

    def config(self, layers: Layers, wish: QuantizationWish | None) -> StageConfig:
        """How a peer with this wish is to load a stage."""
        begin, end = layers
        if self._layers:
            runs = runs_of([layer.quantization for layer in self._layers[begin:end]])
        else:
            runs = runs_of([wished(wish, self._whole.quantization)])
        return replace(
            self._whole,
            begin=begin,
            end=end,
            quantization=runs[0].config if len(runs) == 1 else None,
            layer_quantization=runs if len(runs) > 1 else (),
            numerics=self.kernels,
        )

    def is_kept(self, config: StageConfig, info: ExecutorInfo) -> bool:
        """Whether a stage that was loaded so has the bits of what serves, or served, its layers."""
        return self._layers[config.begin : config.end] == [*_layers_of(config, info)]

    def settle(self, stages: Sequence[Stage]) -> list[tuple[PeerId, str]]:
        """Note how these compute, which together are the whole model; which peers do so in another way than before.

        Of those, in words, with what that means.
        """
        before = self._layers
        self._layers = [layer for stage in stages for layer in _layers_of(stage.config, stage.info)]
        return [*self._changes(before, stages)] if before else []

    def _changes(self, before: Sequence[_Layer], stages: Sequence[Stage]) -> Iterator[tuple[PeerId, str]]:
        for stage in stages:
            layers = range(stage.config.begin, stage.config.end)
            number = next((it for it in layers if self._layers[it] != before[it]), None)
            if number is not None:
                yield (
                    stage.peer_id,
                    f"computes layer {number} as {self._layers[number]}, which was computed as {before[number]}: "
                    "from here on answers are the same up to rounding",
                )


def wished(wish: QuantizationWish | None, usual: QuantizationConfig | None) -> QuantizationConfig | None:
    """How a peer with this wish has its layers, where they are `usual` otherwise."""
    if wish is None:
        return usual
    if wish == "none":
        return None
    config = QuantizationConfig.named(wish)
    return usual if usual is not None and usual.bits == config.bits else config


def _layers_of(config: StageConfig, info: ExecutorInfo) -> Iterator[_Layer]:
    num_layers = config.end - config.begin
    for quantization in [*by_layer(config.layer_quantization)] or [config.quantization] * num_layers:
        yield _Layer(quantization, kernels_of(info.numerics), info.num_ranks)
