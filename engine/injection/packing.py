"""Moves a model's weights into the CPU kernels' panels, one at a time, so that each is in memory once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.packed_experts import EXPERTS_NAME, pack_experts, register_experts
from distllm.engine.injection.packed_weight import PackedWeight, Panels
from distllm.engine.injection.policies import has_experts, is_router, projections_to_fuse
from distllm.engine.injection.quantizing import Schemes
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.quantized import pack_quantized
from distllm.engine.quantization.config import WeightScheme
from distllm.engine.quantization.quantizer import quantize
from distllm.engine.quantization.tensor import concatenate


def pack_weights(
    model: PreTrainedModel, kernels: CpuKernels, schemes: Schemes, on_progress: Callable[[float], None]
) -> int:
    """Pack every weight that is multiplied with, quantized as `schemes` says; returns the bytes of the packed ones.

    Tied weights stay tied: an embedding that shares the output head's weight reads its rows from the panels. What
    stays dense is copied, so that nothing refers to the checkpoint's mapped files any more.
    """
    register_experts()
    packer = _WeightPacker(model, kernels, schemes, on_progress)
    packer.pack()
    _copy_parameters(model)
    if any(has_experts(module) for module in model.modules()):
        model.set_experts_implementation(EXPERTS_NAME)
    return packer.packed_bytes


class _WeightPacker:
    """Lets go of each dense weight as soon as it is packed."""

    def __init__(
        self, model: nn.Module, kernels: CpuKernels, schemes: Schemes, on_progress: Callable[[float], None]
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._schemes = schemes
        self._on_progress = on_progress
        self._users = _modules_by_weight(model)
        self._num_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self._done_bytes = 0
        self.packed_bytes = 0

    @torch.inference_mode()
    def pack(self) -> None:
        for module in self._model.modules():
            self._pack_together(projections_to_fuse(module))
        for module in self._model.modules():
            if isinstance(module, Conv1D):
                self._pack(module, is_transposed=True)
            elif type(module) is nn.Linear or is_router(module):
                self._pack(module)
            elif has_experts(module):
                self._count(pack_experts(module, partial(self._expert, self._schemes.get(module))))
        for module in self._schemes:
            if isinstance(module, nn.Embedding):
                self._pack(module)
        self._on_progress(1.0)

    def _pack_together(self, layers: Sequence[nn.Linear]) -> None:
        """One packed weight for several layers, of which each gets its rows."""
        if not layers:
            return
        weights = [layer.weight for layer in layers]
        panels = self._panels(weights, self._schemes.get(layers[0]))
        start = 0
        for layer in layers:
            stop = start + layer.out_features
            self._replace(layer, PackedWeight(self._kernels, panels, slice(start, stop)))
            start = stop
        self._count(sum(weight.nbytes for weight in weights))

    def _pack(self, module: nn.Module, *, is_transposed: bool = False) -> None:
        weight = module._parameters.get("weight")
        if weight is None:
            return
        panels = self._panels([weight.T if is_transposed else weight], self._schemes.get(module))
        self._replace(module, PackedWeight(self._kernels, panels, is_transposed=is_transposed))
        self._count(weight.nbytes)

    def _expert(self, scheme: WeightScheme | None, weight: Tensor) -> PackedWeight:
        return PackedWeight(self._kernels, self._panels([weight], scheme))

    def _panels(self, weights: Sequence[Tensor], scheme: WeightScheme | None) -> Panels:
        if scheme is None:
            panels: Panels = self._kernels.pack_linear(weights)
        else:
            quantized = concatenate([quantize(weight, scheme) for weight in weights])
            panels = pack_quantized(self._kernels, quantized)
        self.packed_bytes += panels.num_bytes
        return panels

    def _replace(self, module: nn.Module, packed: PackedWeight) -> None:
        """Give `packed` to every module that uses this module's weight."""
        for user in self._users[id(module._parameters["weight"])]:
            del user._parameters["weight"]
            user.weight = packed  # type: ignore[assignment]

    def _count(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        self._on_progress(self._done_bytes / self._num_bytes)


def _copy_parameters(model: nn.Module) -> None:
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in copies:
                    copies[id(parameter)] = nn.Parameter(parameter.clone(), requires_grad=False)
                module._parameters[name] = copies[id(parameter)]


def _modules_by_weight(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Modules by the identity of their `weight` parameter: several where it is tied."""
    users: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        if module._parameters.get("weight") is not None:
            users[id(module._parameters["weight"])].append(module)
    return users
