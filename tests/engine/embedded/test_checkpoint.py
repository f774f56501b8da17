"""The checkpoint that ships: its size, what its card says of it, and its answers through the real server."""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from distllm.clients import Client
from distllm.engine.embedded import checkpoint_path
from distllm.engine.embedded.evaluate import Subject, held_out_questions, report
from distllm.engine.embedded.train import Recipe

if TYPE_CHECKING:
    from tests.conftest import RunningServer

CARD = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
PERPLEXITY_TOLERANCE = 0.01
RATE_TOLERANCE = 1.0
"""In percent. Another processor sums in another order, and a near tie may fall the other way."""


def figures(lines: Iterable[str]) -> dict[str, float]:
    """The last number of each line that has one, by the line's words."""
    found = re.findall(r"^  (\S.*?) +(?:\d+ of +\d+ +)?([\d.]+)%?$", "\n".join(lines), re.MULTILINE)
    return {name: float(number) for name, number in found}


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in checkpoint_path().iterdir()) <= 12e6


def test_the_card_names_the_recipe_s_length() -> None:
    assert f"{Recipe().num_steps} steps" in CARD


@pytest.mark.slow
@pytest.mark.soak
def test_the_card_states_what_the_evaluation_prints() -> None:
    stated = figures(CARD.splitlines())
    printed = figures(report(Subject.load(checkpoint_path()), num_questions=300, num_stories=300, seed=0))
    assert len(printed) == 16
    assert stated.keys() == printed.keys()
    for name, value in printed.items():
        tolerance = PERPLEXITY_TOLERANCE if name[0].isdigit() or "the same" in name else RATE_TOLERANCE
        assert math.isclose(stated[name], value, rel_tol=0, abs_tol=tolerance), (name, stated[name], value)


@pytest.mark.parametrize("kind", ["sum", "opposite", "day_after"])
def test_the_served_model_answers_what_it_must_know(embedded_server: "RunningServer", kind: str) -> None:
    questions = held_out_questions(kind, 60, seed=1)
    with Client(embedded_server.url) as client:
        answers = [
            client.chat([{"role": "user", "content": question.prompt}], temperature=0).text
            for question in questions
        ]
    num_right = sum(answer == question.answer for question, answer in zip(questions, answers, strict=True))
    assert num_right >= 0.95 * len(questions)
