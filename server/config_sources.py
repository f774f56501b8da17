"""Reads settings from flags, environment, a YAML file and defaults, in that order of precedence."""

import difflib
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from distllm.engine.quantization.config import QuantizationError
from distllm.server.config import OFFLOAD_OPTIONS, InvalidSettings, Settings, fields, is_repeatable, sections
from distllm.server.config_file import read_config_file
from distllm.server.setting_words import describe

ENV_PREFIX = "DISTLLM_"

_RESEMBLANCE = 0.75

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
        raise InvalidSettings(describe(error)) from None
    except QuantizationError as error:
        raise InvalidSettings(f"setting model.{error}") from None
    if settings.cluster.mode == "hybrid" and settings.cluster.coordinator is None:
        raise InvalidSettings("setting cluster.mode: hybrid needs peers as well: give --coordinator cluster.yaml")
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
    """The settings of a file, if one is given; a text alone is a list of one."""
    by_section = {} if path is None else read_config_file(path, sections())
    for section, values in by_section.items():
        known = sections()[section].model_fields
        for name, value in values.items():
            if isinstance(value, str) and is_repeatable(known[name]):
                values[name] = (value,)
    return by_section
