"""DeepSpeedConfig: how a model is to be run, under DeepSpeed's names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from distllm.deepspeed.given_fields import Given, read_given
from distllm.deepspeed.number_type import dtype_name
from distllm.deepspeed.quantization import read_quantization
from distllm.deepspeed.refusal import InvalidOption
from distllm.engine.config import DtypeName
from distllm.engine.quantization.config import QuantizationConfig

InjectionPolicy = Mapping[type | str, Sequence[str] | str]
_COUNTS = ("tensor_parallel_size", "max_out_tokens", "min_out_tokens")
_SWITCHES = ("replace_with_kernel_inject", "enable_cuda_graph", "use_quantization")


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
    checkpoint_dict: Mapping[str, Any] | None = field(hash=False)
    quantization: QuantizationConfig | None
    injection_policy: Mapping[str, tuple[str, ...]] | None = field(hash=False)
    max_out_tokens: int | None
    min_out_tokens: int

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        dtype: Any = "auto",
        replace_with_kernel_inject: bool = True,
        enable_cuda_graph: bool = False,
        checkpoint_dict: Mapping[str, Any] | str | Path | None = None,
        *,
        use_quantization: bool | None = None,
        quantization_config: Mapping[str, Any] | None = None,
        quantization: QuantizationConfig | None = None,
        injection_policy: InjectionPolicy | None = None,
        max_out_tokens: int | None = None,
        min_out_tokens: int = 1,
        base_dir: str | Path = "",
        **others: Any,
    ) -> None:
        """`others` are DeepSpeed's other fields by their names, which must not contradict these.

        A parameter that has its default says nothing. `quantization` is what the field of that name holds, in place
        of `quantization_config`. Raises InvalidOption, naming the field.
        """
        values = locals()
        stated = {name: values[name] for name, default in _defaults().items() if values[name] is not default}
        given = read_given({**stated, **others}, _defaults())
        values = {**_defaults(), **{parameter: field.value for parameter, field in given.items()}}
        _check_types(values, given)
        values |= {
            "dtype": dtype_name(values["dtype"]),
            "checkpoint_dict": _read_checkpoint_dict(values["checkpoint_dict"], values["base_dir"]),
            "quantization": _read_quantization(values, given),
            "injection_policy": read_policy(values["injection_policy"]),
        }
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, values[name])

    def with_policy(self, policy: InjectionPolicy) -> "DeepSpeedConfig":
        """The same with an injection policy, which must not contradict its own. Raises InvalidOption."""
        read = read_policy(policy)
        if self.injection_policy not in (None, read):
            raise InvalidOption("injection_policy", "is one in config and another beside it: give one of them")
        return replace(self, injection_policy=read)

    @classmethod
    def read(
        cls, config: "DeepSpeedConfig | Mapping[str, Any] | str | Path | None", **others: Any
    ) -> "DeepSpeedConfig":
        """Of a config, a dict or a JSON file, with `others`, which must not contradict it. Raises InvalidOption."""
        if isinstance(config, cls):
            if others:
                raise InvalidOption("config", f"is a DeepSpeedConfig: put {min(others)} into it")
            return config
        if isinstance(config, str | Path):
            config = _read_json("config", config)
        if config is not None and not isinstance(config, Mapping):
            raise InvalidOption("config", f"must be a DeepSpeedConfig, a dict or a JSON file, not {config!r}")
        both = dict(config or {})
        names: list[object] = list(both)
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise InvalidOption("config", f"has {wrong[0]!r}, which is no name of a field")
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


def _check_types(values: Mapping[str, Any], given: Mapping[str, Given]) -> None:
    """Of what was `given`; the others are defaults."""
    for parameter in _COUNTS:
        value = values[parameter]
        if parameter in given and (type(value) is not int or value < 1):
            raise InvalidOption(given[parameter].name, f"must be a whole number of at least 1, not {value!r}")
    for parameter in _SWITCHES:
        if parameter in given and not isinstance(values[parameter], bool):
            raise InvalidOption(given[parameter].name, f"must be True or False, not {values[parameter]!r}")
    if not isinstance(values["base_dir"], str | Path):
        raise InvalidOption(given["base_dir"].name, f"must be a directory, not {values['base_dir']!r}")
    most = values["max_out_tokens"]
    if most is not None and values["min_out_tokens"] > most:
        raise InvalidOption("min_out_tokens", f"must not exceed max_out_tokens, which is {most}")


def _read_quantization(values: Mapping[str, Any], given: Mapping[str, Given]) -> QuantizationConfig | None:
    known = values["quantization"]
    if known is None:
        name = given["quantization_config"].name if "quantization_config" in given else "quantization_config"
        return read_quantization(values["use_quantization"], values["quantization_config"], name)
    if not isinstance(known, QuantizationConfig):
        raise InvalidOption(
            "quantization", f"must be a QuantizationConfig, not {known!r}: give quantization_config"
        )
    for parameter in ("use_quantization", "quantization_config"):
        if parameter in given and values[parameter] is not True:
            name = given[parameter].name
            raise InvalidOption(
                name, f"is {values[parameter]!r}, and quantization is {known.name}: give one of them"
            )
    return known


def _read_checkpoint_dict(given: object, base_dir: str | Path) -> Mapping[str, Any] | None:
    """With safetensors files under `checkpoints`, and a `base_dir`: where the JSON file is, if they are there."""
    if given is None:
        return None
    file = Path(given) if isinstance(given, str | Path) else None
    found = given if file is None else _read_json("checkpoint_dict", file)
    if not isinstance(found, Mapping):
        raise InvalidOption("checkpoint_dict", f"must be a dict or a JSON file, not {given!r}")
    files = found.get("checkpoints")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list | tuple) or not files or not all(isinstance(name, str) for name in files):
        raise InvalidOption("checkpoint_dict", "must hold 'checkpoints', a list of safetensors files")
    if wrong := next((name for name in files if not name.endswith(".safetensors")), None):
        raise InvalidOption("checkpoint_dict", f"names {wrong}, which is no safetensors file: convert it first")
    base = found.get("base_dir") or base_dir
    if not isinstance(base, str | Path):
        raise InvalidOption("checkpoint_dict", f"has base_dir {base!r}, which must be a directory")
    if file is not None and all((file.parent / name).is_file() for name in files):
        base = file.parent
    return {"checkpoints": tuple(files), "base_dir": str(base)}


def _read_json(option: str, path: str | Path) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidOption(option, f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise InvalidOption(option, f"{path} must hold a JSON object")
    return document
