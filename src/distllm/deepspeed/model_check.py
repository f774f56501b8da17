"""Whether the ranks, which build a model from its config, would build the one in memory. Reads no weights."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from distllm.deepspeed.refusal import InvalidOption
from distllm.engine.reference_block import register_reference_model

_REMEDY = "the ranks build it from its config: save it, and give its path"
_LIBRARIES = ("transformers", "accelerate")
"""Their own hooks note outputs, or move tensors between devices: no result depends on them."""

_BOOKKEEPING = (
    "training",
    "gradient_checkpointing",
    "vocab_size",
    "layer_idx",
    "padding_idx",
    "max_seq_len_cached",
)
"""Plain attributes of modules on which no result depends, or that transformers itself changes or leaves stale."""


def check_model(model: PreTrainedModel) -> None:
    """Raises InvalidOption, naming the module, where the model that its config stands for is another one."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise InvalidOption("model", "is quantized in memory: give the checkpoint's path, and its codes are read")
    register_reference_model()
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if known is not type(model):
        meant = f"its config stands for {known.__name__}" if known else "its config stands for no decoder"
        raise InvalidOption("model", f"is a {type(model).__name__}, but {meant}, which is what the ranks build")
    if (change := next(_changes(model, _build(model)), None)) is not None:
        raise InvalidOption("model", f"was changed by hand: {change}; {_REMEDY}")


def _build(model: PreTrainedModel) -> nn.Module:
    """The model of the config, without tensors' content."""
    try:
        with torch.device("meta"):
            built: nn.Module = type(model)(copy.deepcopy(model.config))
            return built
    except Exception as error:  # a model class raises whatever it chokes on
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidOption("model", f"cannot be built from its config, as the ranks would: {reason}") from None


def _changes(model: nn.Module, built: nn.Module) -> Iterator[str]:
    """What `model` has that `built` has not, module by module, each in one clause."""
    modules = dict(model.named_modules(remove_duplicate=False))
    expected = dict(built.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if name not in expected:
            yield f"{name}, a {type(module).__name__}, is not in its config"
        elif type(module) is not type(expected[name]):
            yield f"{name} is a {_class_name(module)}, and by its config a {_class_name(expected[name])}"
        else:
            title = name or type(module).__name__
            yield from (f"{title} {change}" for change in _module_changes(module, expected[name]))
    yield from (f"{name} is missing" for name in expected if name not in modules)
    yield from _tensor_changes(model.state_dict(keep_vars=True), built.state_dict(keep_vars=True))


def _module_changes(module: nn.Module, built: nn.Module) -> Iterator[str]:
    """Of one module apart from what lies within it: its hooks, functions and plain attributes."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        yield from ("has a forward hook" for hook in hooks.values() if not _is_of_library(hook, module))
    attributes, expected = vars(module), vars(built)
    for name, value in attributes.items():
        if isinstance(value, nn.Module | type):
            continue
        if callable(value):
            shadows = name in expected or hasattr(type(module), name)
            if shadows and not (_is_of_library(value, module) or _is_same_function(value, expected.get(name))):
                yield f"has a {name} of its own"
        elif _counts(name, value, module) and name in expected and value != expected[name]:
            yield f"has {name} {value!r}, and by its config {expected[name]!r}"


def _tensor_changes(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            continue  # of a module whose class was told apart
        if name not in expected:
            yield f"{name} is not in its config"
        elif tensor.shape != expected[name].shape:
            yield f"{name} has shape {list(tensor.shape)}, and by its config {list(expected[name].shape)}"
    yield from (f"{name} is missing" for name in expected if name not in tensors)


def _class_name(module: nn.Module) -> str:
    """With its module where that is not torch's or transformers' own."""
    kind = type(module)
    is_plain = kind.__module__.startswith(("torch.nn.", "transformers."))
    return kind.__name__ if is_plain else f"{kind.__module__}.{kind.__qualname__}"


def _counts(name: str, value: object, module: nn.Module) -> bool:
    """Whether a result may depend on a plain attribute."""
    if name.startswith("_") or name.endswith(_BOOKKEEPING) or "dropout" in name or isinstance(module, nn.Dropout):
        return False
    return value is None or isinstance(value, int | float | str)


def _is_of_library(function: Callable[..., Any], module: nn.Module) -> bool:
    """Whether transformers or accelerate put it there, and not for a hook of the user's."""
    hook = getattr(module, "_hf_hook", None)  # what accelerate's own forward calls
    homes = [_home(function), *([] if hook is None else [type(hook).__module__])]
    return all(home.partition(".")[0] in _LIBRARIES for home in homes)


def _home(function: Any) -> str:
    """The module in which its code is, whatever functools.wraps made of its name."""
    function = function.func if isinstance(function, partial) else function
    function = getattr(function, "__func__", function)
    namespace = getattr(function, "__globals__", None)
    return str(namespace.get("__name__", "")) if namespace is not None else type(function).__module__


def _is_same_function(function: Any, expected: Any) -> bool:
    if isinstance(function, partial) and isinstance(expected, partial):
        return (function.func, function.args, function.keywords) == (
            expected.func,
            expected.args,
            expected.keywords,
        )
    return bool(getattr(function, "__func__", function) is getattr(expected, "__func__", expected))
