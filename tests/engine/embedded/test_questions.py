"""Answers are recomputed here from the prompt's text alone, by other means than the grammar's."""

import json
import random
import re
from itertools import pairwise

import pytest

from distllm.engine.embedded.corpus import Chat, text_of, training_documents
from distllm.engine.embedded.questions import KINDS, Question, held_out_question, training_question
from distllm.engine.embedded.wordings import HELD_OUT, TRAINED
from distllm.engine.embedded.words import OPPOSITES

WEEK = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"]
NUMBER_WORDS = "zero one two three four five six seven eight nine".split()  # noqa: SIM905


def draw(kind: str, count: int, seed: int = 0) -> list[Question]:
    """Half of them as in training, half as in evaluation."""
    rng = random.Random(seed)
    return [(training_question, held_out_question)[i % 2](kind, rng) for i in range(count)]


def numbers_in(prompt: str) -> list[int]:
    without_frame = re.sub(r"(?i)one more: |steps of one", "", prompt)
    found = re.findall(rf"\d+|\b(?:{'|'.join(NUMBER_WORDS)})\b", without_frame, re.IGNORECASE)
    return [int(word) if word.isdigit() else NUMBER_WORDS.index(word.lower()) for word in found]


def day_in(prompt: str) -> int:
    (day,) = [WEEK.index(word) for word in re.findall(r"[a-z]+", prompt.lower()) if word in WEEK]
    return day


@pytest.mark.parametrize("kind", ["sum", "big_sum"])
def test_sums_are_right(kind: str) -> None:
    for question in draw(kind, 400):
        a, b = numbers_in(question.prompt)
        assert question.answer == str(a + b), question
        assert max(a, b) < (10 if kind == "sum" else 100)


def test_differences_are_right_and_never_negative() -> None:
    for question in draw("difference", 400):
        a, b = numbers_in(question.prompt)
        assert int(question.answer) == abs(a - b) >= 0, question


def test_counting_goes_up_by_one_from_the_first_to_the_last_number() -> None:
    for question in draw("count", 200):
        first, last = numbers_in(question.prompt)
        counted = [int(number) for number in question.answer.split(", ")]
        assert (counted[0], counted[-1]) == (first, last), question
        assert all(after - before == 1 for before, after in pairwise(counted))


def test_every_word_has_exactly_one_opposite() -> None:
    words = [word for pair in OPPOSITES for word in pair]
    assert len(words) == len(set(words))


def test_opposites_are_right() -> None:
    pairs = {frozenset(pair) for pair in OPPOSITES}
    for question in draw("opposite", 400):
        asked = set(re.findall(r"[a-z]+", question.prompt.lower()))
        assert any(question.answer in pair and pair - {question.answer} <= asked for pair in pairs), question


@pytest.mark.parametrize(("kind", "offset"), [("day_after", 1), ("day_before", -1)])
def test_days_are_right(kind: str, offset: int) -> None:
    for question in draw(kind, 200):
        assert question.answer.lower() == WEEK[(day_in(question.prompt) + offset) % 7], question


def test_words_are_spelled_right() -> None:
    for question in draw("spell", 400):
        word = question.answer.replace("-", "")
        assert re.search(rf"\b{word}\b", question.prompt.lower()), question
        assert re.fullmatch(r"[a-z](-[a-z])+", question.answer)


@pytest.mark.parametrize("kind", ["backwards", "backwards_new"])
def test_words_are_turned_around_right(kind: str) -> None:
    for question in draw(kind, 400):
        forwards, backwards = question.answer.split(" backwards is ")
        assert forwards == backwards[::-1]
        assert re.search(rf"\b{forwards.replace('-', '')}\b", question.prompt.lower()), question


def test_words_are_repeated_as_they_are() -> None:
    for question in draw("repeat", 200):
        assert question.answer in question.prompt.lower(), question


def test_names_are_told_back() -> None:
    for question in draw("name", 200):
        assert question.answer.lower() in question.prompt.lower(), question


def test_json_answers_parse_and_hold_the_keys_and_facts_of_the_prompt() -> None:
    for question in draw("json", 400):
        filled = json.loads(question.answer)
        asked = re.search(r"\{.*\}|name(?:, \w+)* and \w+", question.prompt)
        assert asked is not None, question
        assert list(filled) == re.findall(r"\b(?:name|age|city|pet|color|food)\b", asked.group()), question
        assert all(str(value) in question.prompt for value in filled.values()), question
        assert all(isinstance(value, int) == (key == "age") for key, value in filled.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_asks_the_same_questions(kind: str) -> None:
    assert draw(kind, 20, seed=5) == draw(kind, 20, seed=5)
    assert draw(kind, 20, seed=5) != draw(kind, 20, seed=6)


def test_every_kind_that_is_trained_on_is_also_evaluated() -> None:
    assert TRAINED.keys() == HELD_OUT.keys()
    assert not {wording for kind in TRAINED.values() for wording in kind} & {
        wording for kind in HELD_OUT.values() for wording in kind
    }


def test_held_out_wordings_never_occur_in_training_text() -> None:
    held_out = re.compile("|".join(as_pattern(wording) for kind in HELD_OUT.values() for wording in kind))
    documents = training_documents("training 3 0")
    chats = [document for document in (next(documents) for _ in range(6000)) if isinstance(document, Chat)]
    said = [message.content.lower() for chat in chats for message in chat.messages if message.role == "user"]
    assert len(said) > 8000
    assert [prompt for prompt in said if held_out.search(prompt)] == []


def test_held_out_patterns_do_find_held_out_questions() -> None:
    rng = random.Random(0)
    for kind in ("sum", "opposite", "day_after", "json"):
        prompt = held_out_question(kind, rng).prompt.lower()
        assert any(re.search(as_pattern(wording), prompt) for wording in HELD_OUT[kind])


def as_pattern(wording: str) -> str:
    """`wording` in lower case, with anything in its fields and with or without its last mark."""
    parts = re.split(r"\{\w+\}", wording.lower().rstrip(".?"))
    return ".+".join(re.escape(part) for part in parts)


@pytest.mark.parametrize("kind", ["big_sum", "count", "backwards", "backwards_new"])
def test_operands_of_evaluation_are_never_trained_on(kind: str) -> None:
    rng = random.Random(1)

    def operands(question: Question) -> object:
        return question.answer if "backwards" in kind else frozenset(numbers_in(question.prompt))

    trained = {operands(training_question(kind, rng)) for _ in range(3000)}
    assert trained.isdisjoint({operands(held_out_question(kind, rng)) for _ in range(1000)})


def test_text_of_a_chat_names_every_role() -> None:
    chat = next(document for document in training_documents("x") if isinstance(document, Chat))
    assert text_of(chat).count("user\n") == sum(message.role == "user" for message in chat.messages)
