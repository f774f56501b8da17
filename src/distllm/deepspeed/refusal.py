"""How this package says no: one line that names the option and the remedy, with near matches of a wrong name."""

import difflib
from collections.abc import Collection

_RESEMBLANCE = 0.5
_MAX_NEAR = 3


class InvalidOption(ValueError):
    """An argument cannot be what it is. `option` is its name; the message names it and what goes instead."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option} {reason}")
        self.option = option


def near_matches(name: str, known: Collection[str]) -> str:
    """A clause with the names of `known` that resemble `name`, or with all of them where none does."""
    near = difflib.get_close_matches(name, known, _MAX_NEAR, _RESEMBLANCE)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known))}"
