"""DeepSpeedConfig: how a model is to be run, under DeepSpeed's names."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from distllm.deepspeed.given_fields import read_given
from distllm.deepspeed.number_type import dtype_name
from distllm.deepspeed.quantization import read_quantization
from distllm.deepspeed.refusal import InvalidOption
from distllm.engine.config import DtypeName
from distllm.engine.quantization.config import QuantizationConfig

InjectionPolicy = Mapping[type | str, Sequence[str] | str]
_COUNTS = ("tensor_parallel_size", "max_out_tokens", "min_out_tokens")


@dataclass(frozen=True, slots=True, init=False)
class DeepSpeedConfig:
    """How to run a model. Frozen, and everything in it has been checked.

    `tensor_parallel_size` ranks share it. `dtype` is a torch.dtype or its name, "auto" the model's own.
    `replace_with_kernel_inject` puts our kernels under it, else it runs in plain torch, slowly. `enable_cuda_graph`
    is for GPUs, and on a CPU nothing comes of it. `checkpoint_dict` names the files of the weights in place of the
    model: {"checkpoints": [files], "base_dir": directory}, or a JSON file that holds one. `max_out_tokens` bounds
    prompt and answer together, `min_out_tokens` is the least context that must be had. Whether `injection_policy`
    goes with a model shows when there is one.
    """

    tensor_parallel_size: int
    dtype: DtypeName
    replace_with_kernel_inject: bool
    enable_cuda_graph: bool
    checkpoint_dict: Mapping[str, Any] | None
    quantization: QuantizationConfig | None
    injection_policy: Mapping[str, tuple[str, ...]] | None
    max_out_tokens: int | None
    min_out_tokens: int

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        dtype: Any = "auto",
        replace_with_kernel_inject: bool = True,
        enable_cuda_graph: bool = False,
        checkpoint_dict: Mapping[str, Any] | str | None = None,
        *,
        use_quantization: bool | None = None,
        quantization_config: Mapping[str, Any] | None = None,
        injection_policy: InjectionPolicy | None = None,
        max_out_tokens: int | None = None,
        min_out_tokens: int = 1,
        base_dir: str = "",
        **others: Any,
    ) -> None:
        """`others` are DeepSpeed's other fields by their names, which must not contradict these.

        A parameter that has its default says nothing. Raises InvalidOption, naming the field.
        """
        values = locals()
        stated = {name: values[name] for name, default in _defaults().items() if values[name] is not default}
        given = read_given({**stated, **others}, _defaults())
        values = {**_defaults(), **{parameter: field.value for parameter, field in given.items()}}
        values |= {
            "dtype": dtype_name(values["dtype"]),
            "checkpoint_dict": _read_checkpoint_dict(values["checkpoint_dict"], values["base_dir"]),
            "quantization": read_quantization(values["use_quantization"], values["quantization_config"]),
            "injection_policy": read_policy(values["injection_policy"]),
        }
        _check_counts(values)
        for field in fields(self):
            object.__setattr__(self, field.name, values[field.name])

    def with_policy(self, policy: InjectionPolicy) -> "DeepSpeedConfig":
        """The same with an injection policy, which must not contradict its own. Raises InvalidOption."""
        read = read_policy(policy)
        if self.injection_policy not in (None, read):
            raise InvalidOption("injection_policy", "is one in config and another beside it: give one of them")
        changed = copy.copy(self)
        object.__setattr__(changed, "injection_policy", read)
        return changed

    @classmethod
    def read(cls, config: "DeepSpeedConfig | Mapping[str, Any] | str | None", **others: Any) -> "DeepSpeedConfig":
        """Of a config, a dict or a JSON file, with `others`, which must not contradict it. Raises InvalidOption."""
        if isinstance(config, cls):
            if others:
                raise InvalidOption("config", f"is a DeepSpeedConfig: put {min(others)} into it")
            return config
        if isinstance(config, str):
            config = _read_json("config", config)
        if config is not None and not isinstance(config, Mapping):
            raise InvalidOption("config", f"must be a DeepSpeedConfig, a dict or a JSON file, not {config!r}")
        both = dict(config or {})
        for name in both.keys() & others.keys():
            if both[name] != others[name]:
                raise InvalidOption(name, f"is {both[name]!r} in config and {others[name]!r} beside it")
        both |= others
        read_given(both, _defaults())  # here a value says something even where it is the default
        return cls(**both)


@cache
def _defaults() -> Mapping[str, Any]:
    """Of each parameter of DeepSpeedConfig."""
    parameters = signature(DeepSpeedConfig).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "others"}


def read_policy(policy: object) -> Mapping[str, tuple[str, ...]] | None:
    """Class names to the names of the linear layers that a policy lists. Raises InvalidOption."""
    if policy is None:
        return None
    if not (isinstance(policy, Mapping) and policy):
        raise InvalidOption("injection_policy", "must be {Class: ['parent.child', ...]}")
    read: dict[str, tuple[str, ...]] = {}
    for module_class, names in policy.items():
        class_name = module_class if isinstance(module_class, str) else getattr(module_class, "__name__", "")
        listed = (names,) if isinstance(names, str) else names
        if not (class_name and isinstance(listed, list | tuple) and listed):
            raise InvalidOption("injection_policy", f"must map a class to a list or tuple of names, not {names!r}")
        if wrong := next((name for name in listed if not isinstance(name, str) or "." not in name), None):
            raise InvalidOption("injection_policy", f"lists {wrong!r} for {class_name}; names are 'parent.child'")
        read[class_name] = tuple(listed)
    return read


def _check_counts(values: Mapping[str, Any]) -> None:
    for name in _COUNTS:
        value = values[name]
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidOption(name, f"must be a whole number of at least 1, not {value!r}")
    most = values["max_out_tokens"]
    if most is not None and values["min_out_tokens"] > most:
        raise InvalidOption("min_out_tokens", f"must not exceed max_out_tokens, which is {most}")


def _read_checkpoint_dict(given: Mapping[str, Any] | str | None, base_dir: str) -> Mapping[str, Any] | None:
    """With safetensors files under `checkpoints`, and a `base_dir`: where the JSON file is, if they are there."""
    if given is None:
        return None
    found = dict(_read_json("checkpoint_dict", given) if isinstance(given, str) else given)
    files = found.get("checkpoints")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list | tuple) or not files or not all(isinstance(file, str) for file in files):
        raise InvalidOption("checkpoint_dict", "must hold 'checkpoints', a list of safetensors files")
    if wrong := next((file for file in files if not file.endswith(".safetensors")), None):
        raise InvalidOption("checkpoint_dict", f"names {wrong}, which is no safetensors file: convert it first")
    beside = Path(given).parent if isinstance(given, str) else None
    if beside is not None and all((beside / file).is_file() for file in files):
        return {"checkpoints": tuple(files), "base_dir": str(beside)}
    return {"checkpoints": tuple(files), "base_dir": found.get("base_dir") or base_dir}


def _read_json(option: str, path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidOption(option, f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise InvalidOption(option, f"{path} must hold a JSON object")
    return document
