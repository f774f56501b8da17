"""A flag for every setting of a section, and the settings that flags, environment and file come to."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from distllm.server.config import Section, Settings, fields, is_repeatable
from distllm.server.config_sources import load_settings


def add_settings(parser: argparse.ArgumentParser, shown: dict[str, type[Section]]) -> None:
    parser.add_argument("--config", type=Path, help="YAML file with settings by section")
    for section, model in shown.items():
        group = parser.add_argument_group(section, model.__doc__)
        for name, field in model.model_fields.items():
            _add_setting(group, name, field)


def read_settings(arguments: argparse.Namespace, used: Sequence[str] = ()) -> Settings:
    flags = {name: value for name, value in vars(arguments).items() if name in fields()}
    config = arguments.config or (os.environ.get("DISTLLM_CONFIG") and Path(os.environ["DISTLLM_CONFIG"]))
    return load_settings(flags, config or None, used=used)


def flags_of(section: Section) -> list[str]:
    """The words that set what differs from its default in `section`; the model comes without a flag."""
    words: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value == field.get_default(call_default_factory=True):
            continue
        flag = _flag(name)
        if name == "model":
            words.append(value)
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            for each in value if is_repeatable(field) else [value]:
                words += [flag, str(each).removesuffix(".0")]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_setting(group: Any, name: str, field: FieldInfo) -> None:
    """One flag. Nothing is set where it is not given, so that the environment and the file can speak."""
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
    if name == "model":
        group.add_argument(name, nargs="?", metavar="PATH_OR_HUB_ID", **options)
        return
    if field.annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif is_repeatable(field):
        options |= {"action": "append", "metavar": "KEY" if name == "api_key" else "NAME"}
    elif isinstance(field.default, str):
        options["choices"] = get_args(field.annotation) or None
    group.add_argument(_flag(name), **options)


def _help(field: FieldInfo) -> str:
    has_default = field.default is not None and not is_repeatable(field)
    return f"{field.description}" + (f" (default: {field.default})" if has_default else "")
