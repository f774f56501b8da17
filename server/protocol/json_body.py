"""Strict JSON: bytes of a request body to one object. Refuses what decoders usually let through: NaN, duplicate
keys, lone surrogates, bottomless nesting."""

import json
from collections.abc import Iterator
from typing import Any

from distllm.server.errors import InvalidRequest

MAX_DEPTH = 64

JsonObject = dict[str, Any]


def parse_json_object(body: bytes) -> JsonObject:
    """The object that `body` holds. Raises InvalidRequest, naming the field where one is at fault."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _not_json(str(error)) from None
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object", code="invalid_type")
    if _may_nest_too_deep(body) or b"\\u" in body:
        _check_tree(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidRequest(f"{_shown(key)} is given twice", _shown(key), "duplicate_parameter")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _may_nest_too_deep(body: bytes) -> bool:
    return body.count(b"[") + body.count(b"{") > MAX_DEPTH


def _check_tree(root: JsonObject) -> None:
    """Refuse nesting beyond MAX_DEPTH and text that UTF-8 cannot carry. Walks without recursion."""
    pending: list[tuple[str, Any, int]] = [("", root, 1)]
    while pending:
        path, value, depth = pending.pop()
        if isinstance(value, str):
            _check_text(path, value)
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise _too_deep()
            pending.extend((child_path, child, depth + 1) for child_path, child in _children(path, value))


def _children(path: str, value: JsonObject | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            _check_text(path, key)
            yield (f"{path}.{key}" if path else key), child
    else:
        for index, child in enumerate(value):
            if isinstance(child, str | dict | list):
                yield f"{path}[{index}]", child


def _check_text(path: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{path or 'a field name'} holds a lone surrogate (U+{ord(text[error.start]):04X}), "
            "which is not text; send whole characters",
            path or None,
        ) from None


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _not_json(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the request body is not valid JSON: {reason}", code="invalid_json")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the request body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
