"""The functions that put a model on ranks: DeepSpeed's own call, and one for those who know no DeepSpeed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distllm.deepspeed.config import DeepSpeedConfig, InjectionPolicy
from distllm.deepspeed.engine import InferenceEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def init_inference(
    model: "PreTrainedModel | str | Path",
    config: DeepSpeedConfig | Mapping[str, Any] | str | None = None,
    tokenizer: Any = None,
    injection_policy: InjectionPolicy | None = None,
    *,
    release_model: bool = False,
    **fields: Any,
) -> InferenceEngine:
    """Start the ranks of a model, as deepspeed.init_inference is called.

    `config` is a DeepSpeedConfig, a dict, or a JSON file; `fields` are further fields of it, which must not
    contradict a dict. `injection_policy` {Class: ['parent.child', ...]} names, in a class of the model's layers,
    the linear layers whose partial outputs are added up over ranks: one for each parent, whose other linear layers
    are divided by their outputs. See InferenceEngine for `model`, `tokenizer`, `release_model` and what is raised.
    """
    if injection_policy is not None:
        fields["injection_policy"] = injection_policy
    if isinstance(config, DeepSpeedConfig) and injection_policy is not None:
        config = config.with_policy(fields.pop("injection_policy"))
    return InferenceEngine(model, DeepSpeedConfig.read(config, **fields), tokenizer, release_model=release_model)


def optimize_with_deepspeed(
    model: "PreTrainedModel | str | Path",
    tokenizer: Any = None,
    tensor_parallel_size: int = 1,
    dtype: Any = "auto",
    use_quantization: bool | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    *,
    injection_policy: InjectionPolicy | None = None,
    release_model: bool = False,
    **fields: Any,
) -> InferenceEngine:
    """Start `tensor_parallel_size` ranks of a model, with our kernels, in `dtype`, quantized if asked to.

    `quantization_config` has the entries bits (8 or 4), group_size (32, 64 or 128), mlp_extra_grouping, symmetric
    and dynamic_activations; weights are quantized where it is given, or `use_quantization` is True. `fields` are
    others of DeepSpeedConfig. See InferenceEngine for the rest and for what is raised.
    """
    config = DeepSpeedConfig(
        tensor_parallel_size,
        dtype,
        use_quantization=use_quantization,
        quantization_config=quantization_config,
        injection_policy=injection_policy,
        **fields,
    )
    return InferenceEngine(model, config, tokenizer, release_model=release_model)
