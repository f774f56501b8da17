"""Strict JSON: bytes of a request body to one object. Refuses what decoders usually let through: NaN, duplicate
keys, lone surrogates, bottomless nesting, numbers and lists without bound. Errors name the field at fault by its
path."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distllm.server.errors import InvalidRequest, shown

MAX_DEPTH = 64
MAX_VALUES = 2**20
MAX_CONTAINERS = 2**18
MAX_FIELDS = 2**18
_MAX_DIGITS = 4300
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_FIELD = re.compile(r'\s*[{,]\s*(?=")')
_COLON = re.compile(r"\s*:\s*")

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Fault:
    """Stands in a parsed tree for a value that is refused, until its path is known."""

    reason: str
    code: str = "invalid_json"


def parse_json_object(body: bytes) -> JsonObject:
    """The object that `body` holds. Raises InvalidRequest, naming the field where one is at fault."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 at byte {error.start}") from None
    _check_size(text)
    parser = _Parser()
    try:
        value = parser.parse(text)
    except RecursionError:
        raise _too_deep(_deep_field(text)) from None
    except ValueError as error:
        raise _not_json(str(error)) from None
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object", code="invalid_type")
    if parser.has_fault or _may_nest_too_deep(body) or b"\\u" in body:
        _check_tree(value)
    return value


class _Parser:
    """json's decoder with faults in the place of what is refused."""

    def __init__(self) -> None:
        self.has_fault = False

    def parse(self, text: str, parse_int: Any = None) -> Any:
        """Raises ValueError or RecursionError."""
        try:
            return json.loads(
                text,
                object_pairs_hook=self._object,
                parse_constant=self._constant,
                parse_float=self._float,
                parse_int=parse_int,
            )
        except json.JSONDecodeError:
            raise
        except ValueError:  # int refuses the digits of some number; looking at each number takes time
            return self.parse(text, self._int)

    def _object(self, pairs: list[tuple[str, Any]]) -> JsonObject:
        if len(pairs) > MAX_FIELDS:
            return {"...": self._fault(f"is one of more than {MAX_FIELDS} fields", "invalid_value")}
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    value[key] = self._fault("is given twice", "duplicate_parameter")
                seen.add(key)
        return value

    def _constant(self, name: str) -> _Fault:
        return self._fault(f"is {name}, which is not a JSON number")

    def _float(self, digits: str) -> float | _Fault:
        value = float(digits)
        return value if math.isfinite(value) else self._fault("must be a finite number", "invalid_value")

    def _int(self, digits: str) -> int | _Fault:
        if len(digits) <= _MAX_DIGITS:
            return int(digits)
        return self._fault(f"is a number of {len(digits)} digits", "invalid_value")

    def _fault(self, reason: str, code: str = "invalid_json") -> _Fault:
        self.has_fault = True
        return _Fault(reason, code)


def _check_size(text: str) -> None:
    """Refuse more values than any request has use for, before time is spent on them."""
    if _is_small(text) or _is_small(_STRING.sub("", text)):
        return
    raise InvalidRequest(
        f"the request body holds more than {MAX_VALUES} values, or {MAX_CONTAINERS} lists and objects; "
        "send several requests",
        code="request_too_large",
    )


def _is_small(text: str) -> bool:
    return text.count(",") < MAX_VALUES and text.count("[") + text.count("{") <= MAX_CONTAINERS


def _may_nest_too_deep(body: bytes) -> bool:
    return body.count(b"[") + body.count(b"{") > MAX_DEPTH


def _deep_field(text: str) -> str | None:
    """The first field of the outermost object whose value exhausts the decoder's recursion."""
    decoder = json.JSONDecoder()
    end = 0
    while field := _FIELD.match(text, end):
        key: str | None = None
        try:
            key, end = decoder.raw_decode(text, field.end())
            colon = _COLON.match(text, end)
            _, end = decoder.raw_decode(text, colon.end() if colon else end)
        except RecursionError:
            return key
        except ValueError:
            return None
    return None


def _check_tree(root: JsonObject) -> None:
    """Refuse faults, nesting beyond MAX_DEPTH and text that UTF-8 cannot carry. Walks without recursion."""
    pending: list[tuple[str, Any, int]] = [("", root, 1)]
    while pending:
        path, value, depth = pending.pop()
        if isinstance(value, str):
            _check_text(path, value)
        elif isinstance(value, _Fault):
            raise InvalidRequest(f"{shown(path)} {value.reason}", path, value.code)
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise _too_deep(re.split(r"[.\[]", path, maxsplit=1)[0])
            pending.extend((child_path, child, depth + 1) for child_path, child in _children(path, value))


def _children(path: str, value: JsonObject | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            _check_text(path, key)
            yield (f"{path}.{key}" if path else key), child
    else:
        for index, child in enumerate(value):
            if isinstance(child, str | dict | list | _Fault):
                yield f"{path}[{index}]", child


def _check_text(path: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{shown(path) or 'a field name'} holds a lone surrogate (U+{ord(text[error.start]):04X}), "
            "which is not text; send whole characters",
            path or None,
        ) from None


def _not_json(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the request body is not valid JSON: {reason}", code="invalid_json")


def _too_deep(field: str | None) -> InvalidRequest:
    place = "the request body" if field is None else shown(field)
    return InvalidRequest(f"{place} is nested deeper than {MAX_DEPTH} levels", field, "invalid_json")
