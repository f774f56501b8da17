"""Moves a model's weights into the CPU kernels' panels, one at a time, so that each is in memory once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.injection.packed_experts import EXPERTS_NAME, pack_experts, register_experts
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.injection.policies import has_experts, is_router, projections_to_fuse
from distllm.engine.kernels.ops import CpuKernels
from distllm.engine.kernels.packed import PackedLinear

OnPacked = Callable[[Sequence[nn.Module], PackedLinear], None]
"""Called with each packed weight and the modules that use it, in the order of the model's modules."""


def leave_packed(users: Sequence[nn.Module], panels: PackedLinear) -> None:
    """The OnPacked of weights that stay where they are."""


def pack_weights(
    model: PreTrainedModel,
    kernels: CpuKernels,
    on_progress: Callable[[float], None],
    on_packed: OnPacked,
) -> int:
    """Pack every weight that is multiplied with; returns the bytes of the packed ones.

    `on_packed` may move a weight's panels elsewhere before the next one is packed.

    Tied weights stay tied: an embedding that shares the output head's weight reads its rows from the panels. What
    stays dense is copied, so that nothing refers to the checkpoint's mapped files any more.
    """
    register_experts()
    packer = _WeightPacker(model, kernels, on_progress, on_packed)
    packer.pack()
    _copy_parameters(model)
    if any(has_experts(module) for module in model.modules()):
        model.set_experts_implementation(EXPERTS_NAME)
    return packer.packed_bytes


class _WeightPacker:
    """Lets go of each dense weight as soon as it is packed."""

    def __init__(
        self, model: nn.Module, kernels: CpuKernels, on_progress: Callable[[float], None], on_packed: OnPacked
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._on_progress = on_progress
        self._on_packed = on_packed
        self._users = _modules_by_weight(model)
        self._num_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self.packed_bytes = 0

    @torch.inference_mode()
    def pack(self) -> None:
        for module in self._model.modules():
            self._pack_together(projections_to_fuse(module))
            if isinstance(module, Conv1D):
                self._pack(module, is_transposed=True)
            elif type(module) is nn.Linear or is_router(module):
                self._pack(module)
            elif has_experts(module):
                self._count(pack_experts(module, self._kernels, partial(self._on_packed, [module])))

    def _pack_together(self, layers: Sequence[nn.Linear]) -> None:
        """One packed weight for several layers, of which each gets its rows."""
        if not layers:
            return
        panels = self._kernels.pack_linear([layer.weight for layer in layers])
        users: list[nn.Module] = []
        start = 0
        for layer in layers:
            stop = start + layer.out_features
            users += self._replace(layer, PackedWeight(self._kernels, panels, slice(start, stop)))
            start = stop
        self._count(panels.num_bytes)
        self._on_packed(users, panels)

    def _pack(self, module: nn.Module, *, is_transposed: bool = False) -> None:
        weight = module._parameters.get("weight")
        if weight is None:
            return
        panels: PackedLinear = self._kernels.pack_linear(weight.T if is_transposed else weight)
        del weight
        users = self._replace(module, PackedWeight(self._kernels, panels, is_transposed=is_transposed))
        self._count(panels.num_bytes)
        self._on_packed(users, panels)

    def _replace(self, module: nn.Module, packed: PackedWeight) -> list[nn.Module]:
        """Give `packed` to every module that uses this module's weight; returns them."""
        users = self._users[id(module._parameters["weight"])]
        for user in users:
            del user._parameters["weight"]
            user.weight = packed  # type: ignore[assignment]
        return users

    def _count(self, num_bytes: int) -> None:
        self.packed_bytes += num_bytes
        self._on_progress(min(1.0, self.packed_bytes / self._num_bytes))


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
