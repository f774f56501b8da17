"""Builds transformers' model for a checkpoint and gives it the checkpoint's tensors, memory-mapped.

The architecture is built on the meta device; transformers' own conversion mapping renames and merges tensors as its
from_pretrained would. What is missing, unexpected or of another shape is refused, never initialised at random.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import LoadStateDictInfo, convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from distllm.engine.checkpoint import Checkpoint, CheckpointError
from distllm.engine.config_check import check_config
from distllm.engine.contentless import ContentlessSlice
from distllm.engine.conversion.rank_checkpoint import RankCheckpoint
from distllm.engine.distributed.quantized_parts import find_all_parts
from distllm.engine.distributed.sharding import Part
from distllm.engine.distributed.stored_parts import take_parts
from distllm.engine.injection.attention import ATTENTION_NAME, register_attention
from distllm.engine.injection.stored_weights import attach_stored_weights
from distllm.engine.injection.unread_weights import leave_unread
from distllm.engine.reference_block import register_reference_model

_VALIDATOR = re.compile(r"^(Class v|V)alidation error for \w+ '\w+': \w+: ")


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The config of a decoder that transformers knows. Raises CheckpointError."""
    if "auto_map" in checkpoint.config and checkpoint.config.get("model_type") is None:
        raise CheckpointError(f"{checkpoint.path} needs code of its own, which is never run")
    check_config(checkpoint)
    _check_dtype(checkpoint)
    register_reference_model()
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a config class chokes on
        raise CheckpointError(f"{checkpoint.path}/config.json: {_explain(error)}") from None
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{checkpoint.path} is an encoder-decoder ({config.model_type}); only decoders are served"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{checkpoint.path}: {config.model_type} has no causal language model in transformers"
        )
    return config


def build_on_meta(checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture without any tensor's content. Raises CheckpointError."""
    register_attention()
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if model_class.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    config = copy.deepcopy(config)
    config._attn_implementation = ATTENTION_NAME
    with ExitStack() as contexts:
        for context in model_class.get_init_context(dtype, False, False, None):
            contexts.enter_context(context)
        try:
            return cast(PreTrainedModel, model_class(config))
        except Exception as error:  # a model class raises whatever it chokes on
            if isinstance(error, KeyError) and error.args == (ATTENTION_NAME,):
                reason = "its attention cannot be led to the paged cache"
                raise CheckpointError(f"{model_class.__name__} cannot be served: {reason}") from None
            raise CheckpointError(
                f"{checkpoint.path}/config.json: {model_class.__name__} cannot be built from it: {_explain(error)}"
            ) from None


def load_weights(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    parts: Mapping[str, Part] | None = None,
    *,
    leaves_unread: bool = False,
) -> PreTrainedModel:
    """`model`, built on the meta device, in evaluation mode, with every parameter and buffer on `device`.

    What is stored quantized stays so. On a CPU, tensors that are stored as `dtype` stay views of the mapped files:
    nothing is read before it is used.
    `parts` says of which parameters the model holds only a part. `leaves_unread` puts an UnreadWeight in the place
    of each weight that would be copied. On the meta device nothing is read, and what names and shapes tell against
    the checkpoint is found all the same. Raises CheckpointError.
    """
    load_config = LoadStateDictConfig(
        device_map={"": str(device)},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),
    )
    with _no_progress_bars(), ExitStack() as files:
        try:
            held = _parts_to_take(checkpoint, model, parts or {})
            unread = leave_unread(model, checkpoint.in_files, dtype, held) if leaves_unread else set()
            quantized = attach_stored_weights(model, checkpoint, dtype, device, held)
            stored = take_parts(model, _open_tensors(checkpoint, files, unread | quantized, device), held)
            info, _ = convert_and_load_state_dict_in_model(model, stored, load_config)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{checkpoint.path} cannot be loaded: {_explain(error)}") from None
        _check_complete(checkpoint, model, info)
        type(model)._finalize_model_loading(model, load_config, info)
    if device.type != "meta":
        _check_nothing_on_meta(checkpoint, model)
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def check_loadable(checkpoint: Checkpoint, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Read nothing, and raise CheckpointError for what loading all of `model`, which has no contents, would.

    A rank sees no more than its part of each tensor, and a conversion knows no model. Of a rank's own files, that
    was told when they were written.
    """
    if not isinstance(checkpoint, RankCheckpoint):
        load_weights(checkpoint, model, dtype, torch.device("meta"))


def refuse_unexpected(checkpoint: Checkpoint, model: PreTrainedModel, names: set[str]) -> None:
    """Raises CheckpointError where the model has no place for tensors of `names`, but for those that it ignores."""
    ignored = {*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"}
    unexpected = _without(names, ignored)
    if unexpected:
        raise CheckpointError(
            f"{checkpoint.path} has {len(unexpected)} tensors that {type(model).__name__} has no place for, "
            f"first {min(unexpected)}"
        )


def _check_dtype(checkpoint: Checkpoint) -> None:
    name = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if isinstance(name, str) and not isinstance(getattr(torch, name, None), torch.dtype):
        raise CheckpointError(f"{checkpoint.path}/config.json: dtype {name!r} is no number type that torch knows")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Progress is reported by the caller; transformers' own bars would write over it."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _open_tensors(
    checkpoint: Checkpoint, files: ExitStack, left_out: Collection[str], device: torch.device
) -> dict[str, Any]:
    """Every other stored tensor as a slice of its mapped file, read when it is indexed; without one on meta."""
    if device.type == "meta":
        kept = checkpoint.tensors.items()
        return {name: ContentlessSlice(tensor) for name, tensor in kept if name not in left_out}
    mapped = {
        shard: files.enter_context(safe_open(shard, framework="pt", device="cpu", backend="mmap"))
        for shard in checkpoint.shards
    }
    return {
        name: mapped[tensor.shard].get_slice(name)
        for name, tensor in checkpoint.tensors.items()
        if name not in left_out
    }


def _parts_to_take(checkpoint: Checkpoint, model: PreTrainedModel, parts: Mapping[str, Part]) -> Mapping[str, Part]:
    """The `parts` themselves; none where the checkpoint's files hold just those. Raises CheckpointError."""
    if not isinstance(checkpoint, RankCheckpoint):
        return parts
    found = find_all_parts(model, checkpoint, parts)
    held = {name: Part(cut.dim, cut.spans) for name, cut in checkpoint.cuts.items()}
    for name in checkpoint.tensors:
        if held.get(name) != found.get(name):
            raise CheckpointError(f"{checkpoint.path}: {name} was divided in another way; convert it again")
    return {}


def _check_complete(checkpoint: Checkpoint, model: PreTrainedModel, info: LoadStateDictInfo) -> None:
    if info.conversion_errors:
        name, message = next(iter(info.conversion_errors.items()))
        raise CheckpointError(f"{checkpoint.path}: {name} cannot be converted: {message.strip().splitlines()[-1]}")
    if info.mismatched_keys:
        name, stored, expected = min(info.mismatched_keys)
        raise CheckpointError(
            f"{checkpoint.path}: {name} has shape {tuple(stored)}, config.json asks for {tuple(expected)}"
        )
    missing = _without(
        info.missing_keys - model.all_tied_weights_keys.keys(), model._keys_to_ignore_on_load_missing
    )
    if missing:
        raise CheckpointError(f"{checkpoint.path} lacks {len(missing)} tensors, first {min(missing)}")
    refuse_unexpected(checkpoint, model, info.unexpected_keys)


def _without(names: set[str], patterns: "set[str] | list[str] | None") -> set[str]:
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}


def _check_nothing_on_meta(checkpoint: Checkpoint, model: nn.Module) -> None:
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise CheckpointError(f"{checkpoint.path}: {left[0]} was neither stored nor computed")


def _explain(error: Exception) -> str:
    """One line of an exception: its first, with what follows as long as a colon announces it."""
    if isinstance(error, KeyError) and " " not in str(error):
        return f"transformers knows no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    num_used = next((number for number, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    text = _VALIDATOR.sub("", " ".join(lines[:num_used]))
    is_bare = isinstance(error, ArithmeticError | AssertionError | AttributeError | LookupError | TypeError)
    return f"{type(error).__name__}: {text}" if is_bare else text
