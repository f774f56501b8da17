"""Modules that make a rank's partial results whole: one sum over the ranks after each divided block.

They go around transformers' modules once these have their parts of the weights, packed or not.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distllm.engine.distributed.group import RankGroup
from distllm.engine.distributed.sharding import Sharding
from distllm.engine.injection.packed_weight import PackedWeight
from distllm.engine.pipeline.stage_model.absent_weight import AbsentWeight
from distllm.engine.quantization.weight import QuantizedWeight


def leave_to_first_rank(model: PreTrainedModel, sharding: Sharding) -> None:
    """On every rank but the first, take out of loaded experts what is added once, however many ranks add."""
    for name in sharding.experts if sharding.rank > 0 else ():
        experts = model.get_submodule(name)
        bias = experts._parameters.get("down_proj_bias")
        if bias is not None:
            experts.down_proj_bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False)


def connect(model: PreTrainedModel, sharding: Sharding, group: RankGroup) -> None:
    """Let the divided modules of a loaded model, or of a stage, add up what the ranks compute."""
    for name in sharding.rows:
        model.set_submodule(name, RowParallel(model.get_submodule(name), group))
    for name in sharding.experts:
        model.set_submodule(name, SummedExperts(model.get_submodule(name), group))
    embedding = model.get_input_embeddings()
    if not isinstance(embedding.weight, AbsentWeight):
        model.set_input_embeddings(VocabParallelEmbedding(embedding, sharding.vocabulary, group))


class RowParallel(nn.Module):
    """A linear layer of which each rank has some inputs: partial sums are added in float32, then the bias.

    `layer` is an nn.Linear or a Conv1D, its weight packed or dense.
    """

    def __init__(self, layer: Any, group: RankGroup) -> None:
        super().__init__()
        self.layer = layer
        self._bias: Tensor | None = layer.bias
        self._group = group
        layer.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., this rank's inputs] -> [..., outputs], equal on every rank."""
        total = self._group.sum_rows(self._partial(x))
        if self._bias is not None:
            total = total + self._bias
        return total.to(x.dtype)

    def _partial(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if isinstance(weight, PackedWeight):
            return weight.project_to_float32(x)
        if isinstance(weight, QuantizedWeight):
            return weight.multiply(x).float()
        dense = weight if isinstance(self.layer, nn.Linear) else weight.T
        return nn.functional.linear(x, dense).float()


class SummedExperts(nn.Module):
    """Experts of which each rank has some inner features."""

    def __init__(self, experts: Any, group: RankGroup) -> None:
        super().__init__()
        self.experts = experts
        self._group = group

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the module within: [num_tokens, hidden] -> [num_tokens, hidden], equal on every rank."""
        partial: Tensor = self.experts(hidden_states, *args, **kwargs)
        return self._group.sum_rows(partial.float()).to(hidden_states.dtype)


class VocabParallelEmbedding(nn.Module):
    """An embedding of which each rank has the rows of some tokens."""

    def __init__(self, embedding: Any, vocabulary: range, group: RankGroup) -> None:
        super().__init__()
        self.embedding = embedding
        self._vocabulary = vocabulary
        self._group = group

    @property
    def weight(self) -> Any:
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., hidden]; exactly the row of the one rank that has it."""
        local = ids - self._vocabulary.start
        is_absent = (local < 0) | (local >= len(self._vocabulary))
        rows: Tensor = self.embedding(local.masked_fill(is_absent, 0))
        rows = rows.masked_fill(is_absent.unsqueeze(-1), 0.0)
        return self._group.sum_rows(rows.contiguous())
