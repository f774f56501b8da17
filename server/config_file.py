"""Reads a YAML file with settings by section, each given once; what a value may be is for the sections' models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distllm.server.config import InvalidSettings, Section
from distllm.server.setting_words import suggest


def read_config_file(path: Path, sections: Mapping[str, type[Section]]) -> dict[str, dict[str, Any]]:
    """The values by section and name, all of which are known. Raises InvalidSettings."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InvalidSettings(f"config file {path} cannot be read: {_reason(error)}") from None
    if not isinstance(document, dict):
        raise InvalidSettings(f"config file {path} must hold sections: {', '.join(sections)}")
    return {name: _check_section(path, str(name), values, sections) for name, values in document.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML forbids a key given twice; PyYAML would let the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value} is given a second time", key.start_mark)
            seen.add((key.tag, key.value))
        return node


def _check_section(
    path: Path, section: str, values: object, sections: Mapping[str, type[Section]]
) -> dict[str, Any]:
    if section not in sections:
        raise InvalidSettings(f"config file {path}: section {section!r} is unknown{suggest(section, sections)}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidSettings(f"config file {path}: section {section!r} must hold settings")
    known = sections[section].model_fields
    for name in values:
        if name not in known:
            raise InvalidSettings(f"config file {path}: {section}.{name} is unknown{suggest(str(name), known)}")
    return dict(values)


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
