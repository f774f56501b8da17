"""From a JSON object to a request model: pydantic's findings as one error that names the field and the remedy."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from distllm.server.errors import InvalidRequest, shown
from distllm.server.protocol.json_body import JsonObject

Unsupported = Mapping[str, tuple[Any, ...]]

_LONGEST_GUESSED_NAME = 64


class RequestModel(BaseModel):
    """Base of all request bodies: nothing is converted, nothing is ignored.

    `unsupported` names fields of OpenAI's API that this server does not do yet, each with the values that ask for
    nothing. They are refused by name otherwise; null always asks for nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    unsupported: ClassVar[Unsupported] = {}


Model = TypeVar("Model", bound=RequestModel)


def validate(model: type[Model], fields: JsonObject) -> Model:
    """Raises InvalidRequest for the first field that is wrong."""
    unknown = next((name for name in fields if not _is_named(model, name)), None)
    if unknown is not None:
        raise _unknown_field(model, (unknown,))
    known = {name: value for name, value in fields.items() if not _asks_nothing(model, name, value)}
    try:
        return model.model_validate(known)
    except ValidationError as error:
        finding = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _as_invalid_request(model, finding) from None


def _is_named(model: type[Model], name: str) -> bool:
    return name in model.model_fields or name in model.unsupported


def _asks_nothing(model: type[Model], name: str, value: Any) -> bool:
    """Whether an unsupported field is left out or neutral. Raises InvalidRequest when it is not."""
    if name not in model.unsupported:
        return False
    neutral = model.unsupported[name]
    if value is None or any(type(value) is type(entry) and value == entry for entry in neutral):
        return True
    accepted = " or ".join(repr(entry) for entry in neutral)
    remedy = f"leave it out or send {accepted}" if neutral else "leave it out"
    raise InvalidRequest(f"{name} is not supported by this server; {remedy}", name, "unsupported_parameter")


def _as_invalid_request(model: type[Model], finding: Mapping[str, Any]) -> InvalidRequest:
    path = field_path(finding["loc"])
    name = shown(path)
    match finding["type"]:
        case "extra_forbidden":
            return _unknown_field(model, finding["loc"])
        case "missing":
            return InvalidRequest(f"{name} is required", path, "missing_required_parameter")
        case "finite_number":
            return InvalidRequest(f"{name} must be a finite number", path)
        case str(kind) if kind.endswith("_type"):
            return InvalidRequest(f"{name}: {_lower_first(finding['msg'])}", path, "invalid_type")
        case _:
            return InvalidRequest(f"{name}: {_lower_first(finding['msg'])}", path)


def _unknown_field(model: type[Model], location: tuple[str | int, ...]) -> InvalidRequest:
    path = field_path(location)
    is_guessable = len(location) == 1 and len(path) <= _LONGEST_GUESSED_NAME
    close = difflib.get_close_matches(path, model.model_fields, n=1) if is_guessable else []
    hint = f"; did you mean {close[0]}?" if close else ""
    return InvalidRequest(f"unknown field {shown(path)}{hint}", path, "unknown_parameter")


def field_path(location: tuple[str | int, ...]) -> str:
    """('messages', 0, 'content') -> 'messages[0].content'."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]
