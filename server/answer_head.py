"""What all objects of one answer have in common."""

import uuid
from typing import Literal

import msgspec

Endpoint = Literal["completions", "chat"]

_PREFIXES: dict[Endpoint, str] = {"completions": "cmpl", "chat": "chatcmpl"}


class AnswerHead(msgspec.Struct, frozen=True):
    """`model` is the name that the client used, `created` in seconds since 1970."""

    model: str
    created: int
    fingerprint: str
    include_usage: bool


def new_request_id(endpoint: Endpoint) -> str:
    """The id of an answer, such as cmpl-..., which nobody can guess."""
    return f"{_PREFIXES[endpoint]}-{uuid.uuid4().hex}"
