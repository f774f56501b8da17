"""What is wrong with a setting, in the words of a person."""

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

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
    "string_too_short": "must not be empty",
    "string_type": "must be text; in YAML, write it in quotes",
    "path_type": "must be a path",
    "tuple_type": "must be a text or a list of texts",
    "value_error": "{error}",
}
"""What pydantic's kinds of error mean to whoever sets things."""


def describe(error: ValidationError) -> str:
    """The first fault, without showing a key."""
    first = error.errors(include_url=False)[0]
    section, name = map(str, first["loc"][:2])
    words = _WORDS.get(first["type"], first["msg"]).format(**first.get("ctx", {}))
    given = "" if name == "api_key" or first["type"] == "value_error" else f", not {first['input']!r}"
    return f"setting {section}.{name}: {words}{given}"


def suggest(name: str, known: Iterable[str]) -> str:
    """What an unknown name may have meant, to follow the words that refuse it."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"
