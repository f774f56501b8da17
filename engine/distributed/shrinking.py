"""Gives a model without contents the shapes of a rank's part, so that a rank never holds more than that."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.distributed.division import HeadDivision
from distllm.engine.distributed.sharding import Sharding


def shrink(model: PreTrainedModel, sharding: Sharding) -> None:
    """Give the parameters of a model on the meta device the shapes of the rank's part, and modules their sizes."""
    shrunk: dict[Tensor, nn.Parameter] = {}  # so that what was tied stays tied
    for name, part in sharding.parts.items():
        module_name, _, parameter_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        whole = module.get_parameter(parameter_name)
        if whole not in shrunk:
            shape = [part.size() if dim == part.dim else size for dim, size in enumerate(whole.shape)]
            shrunk[whole] = nn.Parameter(whole.new_empty(shape), requires_grad=False)
        module.register_parameter(parameter_name, shrunk[whole])
        _note_size(module)
    for name, heads in sharding.heads.items():
        _note_heads(model.get_submodule(name), heads)


def _note_size(module: Any) -> None:
    """Let a linear layer or embedding know the shape of its weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.padding_idx = module.weight.shape[0], None


class _LocalConfig:
    """A config as one attention module of a rank sees it: the model's own, but for the numbers of heads."""

    def __init__(self, config: Any, heads: HeadDivision) -> None:
        self._config = config
        self.num_attention_heads = len(heads.query)
        self.num_key_value_heads = len(heads.kv)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _note_heads(module: Any, heads: HeadDivision) -> None:
    """Let an attention module know its numbers of heads, under the names that transformers' modules use."""
    num_heads, num_kv_heads = len(heads.query), len(heads.kv)
    known = {
        "num_heads": num_heads,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "num_key_value_groups": num_heads // num_kv_heads,
        "split_size": num_heads * int(getattr(module, "head_dim", 0)),
    }
    for name, value in known.items():
        if name in vars(module):
            setattr(module, name, value)
    if "config" in vars(module):
        module.config = _LocalConfig(module.config, heads)
