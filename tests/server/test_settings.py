"""Front-end settings that cannot work are refused where they are made."""

from typing import Any

import pytest

from distllm.server.settings import FrontEndSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_names": ()},
        {"model_names": ("a", "")},
        {"max_body_bytes": 0},
        {"max_choices": 0},
        {"max_live": 0},
        {"max_running": 0},
        {"token_budget": 0},
        {"keep_alive_s": -1.0},
        {"stall_s": 0.0},
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrontEndSettings(**{"model_names": ("tiny",)} | wrong)
