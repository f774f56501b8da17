"""Moves a model's weights into the CPU kernels' panels, one at a time, so that each is in memory once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.mapped_pages import MappedPages
from distllm.engine.injection.packed_experts import EXPERTS_NAME, pack_experts, register_experts
from distllm.engine.injection.packed_weight import PackedWeight, Panels
from distllm.engine.injection.policies import has_experts, is_packed, projections_to_fuse
from distllm.engine.injection.quantizing import Schemes
from distllm.engine.injection.unread_weight import UnreadWeight
from distllm.engine.injection.weights import Weight, weight_of, weights_of
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.quantized import pack_quantized
from distllm.engine.quantization.config import WeightScheme
from distllm.engine.quantization.quantizer import quantize
from distllm.engine.quantization.tensor import QuantizedTensor, concatenate, go_together
from distllm.engine.quantization.weight import QuantizedWeight

OnPacked = Callable[[Sequence[nn.Module], Panels], None]
"""Called with each packed weight and the modules that use it, in the order of the model's modules."""


def leave_packed(users: Sequence[nn.Module], panels: Panels) -> None:
    """The OnPacked of weights that stay where they are."""


def pack_weights(
    model: PreTrainedModel,
    kernels: CpuKernels,
    schemes: Schemes,
    on_progress: Callable[[float], None],
    on_packed: OnPacked = leave_packed,
) -> int:
    """Pack every weight that is multiplied with, quantized as `schemes` says; returns the bytes of the packed ones.

    `on_packed` may move a weight's panels elsewhere before the next one is packed.

    Tied weights stay tied: an embedding that shares the output head's weight reads its rows from the panels. What
    stays dense is copied, so that nothing refers to the checkpoint's mapped files any more.
    """
    register_experts()
    packer = _WeightPacker(model, kernels, schemes, on_progress, on_packed)
    packer.pack()
    _copy_parameters(model)
    if any(has_experts(module) for module in model.modules()):
        model.set_experts_implementation(EXPERTS_NAME)
    return packer.packed_bytes


class _WeightPacker:
    """Lets go of each dense weight as soon as it is packed."""

    def __init__(
        self,
        model: PreTrainedModel,
        kernels: CpuKernels,
        schemes: Schemes,
        on_progress: Callable[[float], None],
        on_packed: OnPacked,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._schemes = schemes
        self._on_progress = on_progress
        self._on_packed = on_packed
        self._users = _modules_by_weight(model)
        self._pages = MappedPages()
        self._num_bytes = sum(map(_dense_bytes, weights_of(model)))
        self._done_bytes = 0
        self.packed_bytes = 0

    @torch.inference_mode()
    def pack(self) -> None:
        head = self._model.get_output_embeddings()
        if type(head) is nn.Linear:  # the largest weight first, while the least memory is taken
            self._pack(head)
        for module in self._model.modules():
            self._pack_together(projections_to_fuse(module))
            if is_packed(module):
                self._pack(module, is_transposed=isinstance(module, Conv1D))
            elif has_experts(module):
                pack_experts(module, partial(self._pack_expert, module))
        for module in self._schemes:
            if isinstance(module, nn.Embedding):
                self._pack(module)
        self._on_progress(1.0)

    def _pack_together(self, layers: Sequence[nn.Linear]) -> None:
        """One packed weight for several layers, of which each gets its rows."""
        if not layers:
            return
        weights = [weight for layer in layers if (weight := weight_of(layer)) is not None]
        panels = self._panels(weights, self._schemes.get(layers[0]))
        if panels is None:
            return
        users: list[nn.Module] = []
        start = 0
        for layer in layers:
            stop = start + layer.out_features
            users += self._replace(layer, PackedWeight(self._kernels, panels, slice(start, stop)))
            start = stop
        self._on_packed(users, panels)

    def _pack(self, module: nn.Module, *, is_transposed: bool = False) -> None:
        weight = weight_of(module)
        if weight is None:
            return
        read = _read(weight)
        rows = read.T if is_transposed and isinstance(read, Tensor) else read
        panels = self._panels([rows], self._schemes.get(module))
        assert panels is not None
        users = self._replace(module, PackedWeight(self._kernels, panels, is_transposed=is_transposed))
        self._on_packed(users, panels)

    def _pack_expert(self, experts: nn.Module, weight: Weight) -> PackedWeight:
        panels = self._panels([weight], self._schemes.get(experts))
        assert panels is not None
        self._on_packed([experts], panels)
        return PackedWeight(self._kernels, panels)

    def _panels(self, weights: Sequence[Weight], scheme: WeightScheme | None) -> Panels | None:
        """Those of all rows, None where some are stored differently from others."""
        read = [_read(weight) for weight in weights]
        dense = [weight for weight in read if isinstance(weight, Tensor)]
        if scheme is None and len(dense) == len(read):
            panels: Panels = self._kernels.pack_linear(dense)
        elif scheme is None and dense:
            return None
        else:
            parts = [_quantized(each, scheme) for each in read]
            if not go_together(parts):
                return None
            panels = pack_quantized(self._kernels, concatenate(parts))
        for weight in dense:
            self._pages.forget(weight)
        self.packed_bytes += panels.num_bytes
        self._done_bytes += sum(map(_dense_bytes, weights))
        self._on_progress(self._done_bytes / self._num_bytes)
        return panels

    def _replace(self, module: nn.Module, packed: PackedWeight) -> list[nn.Module]:
        """Give `packed` to every module that uses this module's weight; returns them."""
        users = self._users[id(weight_of(module))]
        for user in users:
            user._parameters.pop("weight", None)
            user.weight = packed  # type: ignore[assignment]
        return users


def _read(weight: Weight) -> Tensor | QuantizedWeight:
    return weight.load() if isinstance(weight, UnreadWeight) else weight


def _quantized(weight: Tensor | QuantizedWeight, scheme: WeightScheme | None) -> QuantizedTensor:
    if isinstance(weight, QuantizedWeight):
        return weight.load()
    assert scheme is not None
    return quantize(weight, scheme)


def _dense_bytes(weight: Weight) -> int:
    return int(weight.nbytes) if isinstance(weight, Tensor) else weight.dense_bytes


def _copy_parameters(model: nn.Module) -> None:
    copies: dict[int, nn.Parameter] = {}
    pages = MappedPages()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in copies:
                    copies[id(parameter)] = nn.Parameter(parameter.clone(), requires_grad=False)
                    pages.forget(parameter)
                module._parameters[name] = copies[id(parameter)]


def _modules_by_weight(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Modules by the identity of their weight: several where it is tied."""
    users: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        weight = weight_of(module)
        if weight is not None:
            users[id(weight)].append(module)
    return users
