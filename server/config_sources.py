"""Reads settings from flags, environment, a YAML file and defaults, in that order of precedence."""

import difflib
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from distllm.engine.quantization.config import QuantizationError
from distllm.server.config import OFFLOAD_OPTIONS, InvalidSettings, Settings, fields, is_repeatable, sections

ENV_PREFIX = "DISTLLM_"

_RESEMBLANCE = 0.75
_WORDS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_type": "must be text; in YAML, write it in quotes",
    "path_type": "must be a path",
    "tuple_type": "must be a text or a list of texts",
    "value_error": "{error}",
}
"""What pydantic's kinds of error mean to whoever sets things."""

logger = logging.getLogger("distllm.server")


def load_settings(
    flags: Mapping[str, Any],
    config_file: Path | None,
    environment: Mapping[str, str] = os.environ,
    used: Collection[str] = (),
) -> Settings:
    """Merge the sources. `flags` holds only what was given, by field name. Raises InvalidSettings.

    `used` names the sections that the caller reads, all if empty: variables for others are not looked at. Nor are
    those for which there is a flag.
    """
    names = {name for name, (section, _) in fields().items() if section in (used or sections())} - flags.keys()
    sources = (_by_section(flags), _read_environment(environment, names), _read_file(config_file))

    class MergedSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, values) for values in sources)

    try:
        settings = MergedSettings()
        settings.model.quantization_config  # noqa: B018
    except ValidationError as error:
        raise InvalidSettings(_describe(error)) from None
    except QuantizationError as error:
        raise InvalidSettings(f"setting model.{error}") from None
    for name in OFFLOAD_OPTIONS:
        if settings.engine.offload == "none" and getattr(settings.engine, name) is not None:
            raise InvalidSettings(f"setting engine.{name} says how to offload: give --offload disk or cpu as well")
    return settings


def _by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        grouped.setdefault(fields()[name][0], {})[name] = value
    return grouped


def _read_environment(environment: Mapping[str, str], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The variables of settings `names`. An empty one is none; one that only resembles a setting is warned of."""
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or not text:
            continue
        if name in names:
            values[name] = _parse_variable(variable, text, fields()[name][1])
        elif name not in fields() and (close := difflib.get_close_matches(name, fields(), 1, _RESEMBLANCE)):
            logger.warning("ignored %s; did you mean %s%s?", variable, ENV_PREFIX, close[0].upper())
    return _by_section(values)


def _parse_variable(variable: str, text: str, field: FieldInfo) -> str | tuple[str, ...]:
    if variable == "DISTLLM_PORT" and "://" in text:
        raise InvalidSettings(
            f"DISTLLM_PORT is {text}, as Kubernetes sets it for a service named distllm: give --port, give the "
            "service another name, or set enableServiceLinks to false in the pod"
        )
    return tuple(part.strip() for part in text.split(",")) if is_repeatable(field) else text


def _read_file(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InvalidSettings(f"config file {path} cannot be read: {_reason(error)}") from None
    if not isinstance(document, dict):
        raise InvalidSettings(f"config file {path} must hold sections: {', '.join(sections())}")
    return {str(section): _check_section(path, str(section), values) for section, values in document.items()}


def _check_section(path: Path, section: str, values: object) -> dict[str, Any]:
    if section not in sections():
        raise InvalidSettings(f"config file {path}: section {section!r} is unknown{_suggest(section, sections())}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidSettings(f"config file {path}: section {section!r} must hold settings")
    known = sections()[section].model_fields
    for name in values:
        if name not in known:
            raise InvalidSettings(f"config file {path}: {section}.{name} is unknown{_suggest(str(name), known)}")
    single = {
        name: value for name, value in values.items() if is_repeatable(known[name]) and isinstance(value, str)
    }
    return values | {name: (value,) for name, value in single.items()}


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _describe(error: ValidationError) -> str:
    """The first fault, in the words of a person and without showing a key."""
    first = error.errors(include_url=False)[0]
    section, name = map(str, first["loc"][:2])
    words = _WORDS.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    given = "" if name == "api_key" or first["type"] == "value_error" else f", not {first['input']!r}"
    return f"setting {section}.{name}: {words}{given}"
