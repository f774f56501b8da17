"""Chat questions with exact answers, drawn from a random generator: operands, wording, answer.

Two things are kept for evaluation and never drawn for training: the HELD_OUT wordings, and for the kinds in
which a model could learn every case by heart the operands that `_is_kept` picks.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from zlib import crc32

from distllm.engine.embedded.wordings import FRAMES, HELD_OUT, TRAINED
from distllm.engine.embedded.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    DAYS,
    DIGIT_NAMES,
    FOODS,
    NAMES,
    OPPOSITES,
    SPELLING,
    THINGS,
    with_article,
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question and the only right answer to it."""

    kind: str
    prompt: str
    answer: str


class Case(NamedTuple):
    """What a wording is filled with, and the answer."""

    fields: Mapping[str, str]
    answer: str


def training_question(kind: str, rng: random.Random) -> Question:
    """A question of `kind` (a key of KINDS) as people type it: in a frame, in lower case or as it stands."""
    case = _draw(kind, rng, kept=False)
    prompt = _word(rng.choice(TRAINED[_wordings_of(kind)]), case)
    if rng.random() < 0.2:
        prompt = rng.choice(FRAMES).format(question=prompt)
    return Question(kind, _as_typed(prompt, rng), case.answer)


def held_out_question(kind: str, rng: random.Random) -> Question:
    """A question of `kind` in a wording, and where `kind` keeps operands on operands, never trained on."""
    case = _draw(kind, rng, kept=True)
    return Question(kind, _word(rng.choice(HELD_OUT[_wordings_of(kind)]), case), case.answer)


def _draw(kind: str, rng: random.Random, *, kept: bool) -> Case:
    while True:
        case = KINDS[kind](rng)
        if kind not in _KINDS_THAT_KEEP or _is_kept(case) == kept:
            return case


def _is_kept(case: Case) -> bool:
    """Whether one of eight that evaluation keeps: a matter of the operands alone, in any order and wording."""
    operands = sorted(case.fields[name] for name in ("a", "b", "word") if name in case.fields)
    return crc32(" ".join(operands).encode()) % 8 == 0


def _word(wording: str, case: Case) -> str:
    prompt = wording.format(**case.fields)
    return prompt[0].upper() + prompt[1:] if wording[0] == "{" and prompt[0].isalpha() else prompt


def _as_typed(prompt: str, rng: random.Random) -> str:
    """People leave out capitals and the last mark; JSON keeps its case, since its values must be copied."""
    chance = rng.random()
    if chance < 0.1 and "{" not in prompt and "JSON" not in prompt:
        return prompt.lower()
    if chance < 0.2 and prompt[-1] in ".?!":
        return prompt[:-1]
    return prompt


def _wordings_of(kind: str) -> str:
    return {"big_sum": "sum", "backwards_new": "backwards"}.get(kind, kind)


def _sum(rng: random.Random) -> Case:
    a, b = rng.randrange(10), rng.randrange(10)
    return Case(_amounts(a, b, rng), str(a + b))


def _big_sum(rng: random.Random) -> Case:
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    return Case(_amounts(a, b, rng, named=0.0), str(a + b))


def _difference(rng: random.Random) -> Case:
    a = rng.randrange(10)
    b = rng.randrange(a + 1)
    return Case(_amounts(a, b, rng), str(a - b))


def _amounts(a: int, b: int, rng: random.Random, named: float = 0.15) -> dict[str, str]:
    as_words = rng.random() < named
    name, friend = rng.sample(NAMES, 2)
    return {
        "a": DIGIT_NAMES[a] if as_words else str(a),
        "b": DIGIT_NAMES[b] if as_words else str(b),
        "things": rng.choice(THINGS) + "s",
        "name": name,
        "friend": friend,
    }


def _count(rng: random.Random) -> Case:
    first = rng.randrange(25)
    last = first + rng.randrange(2, 12)
    return Case({"a": str(first), "b": str(last)}, ", ".join(str(n) for n in range(first, last + 1)))


def _name(rng: random.Random) -> Case:
    name, friend = rng.sample(NAMES, 2)
    return Case({"name": name, "friend": friend}, name)


def _repeat(rng: random.Random) -> Case:
    words = " ".join(rng.choice(SPELLING) for _ in range(rng.randrange(1, 6)))
    return Case({"words": words}, words)


def _opposite(rng: random.Random) -> Case:
    word, answer = rng.sample(rng.choice(OPPOSITES), 2)
    return Case({"word": word}, answer)


def _day_after(rng: random.Random) -> Case:
    day = rng.randrange(7)
    return Case({"day": DAYS[day]}, DAYS[(day + 1) % 7])


def _day_before(rng: random.Random) -> Case:
    day = rng.randrange(7)
    return Case({"day": DAYS[day]}, DAYS[day - 1])


def _spell(rng: random.Random) -> Case:
    word = rng.choice(SPELLING) if rng.random() < 0.5 else _invent_word(rng)
    return Case({"word": word}, "-".join(word))


def _backwards(rng: random.Random) -> Case:
    return _turned_around(rng.choice(SPELLING))


def _backwards_new(rng: random.Random) -> Case:
    return _turned_around(_invent_word(rng))


def _turned_around(word: str) -> Case:
    """The answer spells the word forwards first: letters in sight are far easier to reverse."""
    return Case({"word": word}, f"{'-'.join(word)} backwards is {'-'.join(reversed(word))}")


def _invent_word(rng: random.Random) -> str:
    """Three to eight letters that could be a word: consonants and vowels in turn."""
    letters: list[str] = []
    starts_with_vowel = rng.random() < 0.3
    for place in range(rng.randrange(3, 9)):
        is_vowel = (place % 2 == 0) == starts_with_vowel
        letters.append(rng.choice("aeiou" if is_vowel else "bcdfghjklmnpqrstvwxyz"))
    return "".join(letters)


class _Fact(NamedTuple):
    key: str
    blank: str | int
    draw: Callable[[random.Random], str | int]
    sentences: tuple[str, ...]


_FACTS: Final = (
    _Fact("age", 0, lambda rng: rng.randrange(3, 100), ("{name} is {value} years old.", "{name} is {value}.")),
    _Fact(
        "city",
        "",
        lambda rng: rng.choice(CITIES),
        ("{name} lives in {value}.", "The home of {name} is in {value}."),
    ),
    _Fact("pet", "", lambda rng: rng.choice(ANIMALS), ("{name} has {a_value}.", "The pet of {name} is {a_value}.")),
    _Fact(
        "color",
        "",
        lambda rng: rng.choice(COLOURS),
        ("{name} likes {value} best.", "The favorite color of {name} is {value}."),
    ),
    _Fact("food", "", lambda rng: rng.choice(FOODS), ("{name} eats {value}.", "{name} loves to eat {value}.")),
)


def _json(rng: random.Random) -> Case:
    """One to three facts about somebody, told in any order, to be written under keys in the order asked."""
    name = rng.choice(NAMES)
    facts = rng.sample(_FACTS, rng.randrange(1, 4))
    values = [fact.draw(rng) for fact in facts]
    sentences = [
        rng.choice(fact.sentences).format(name=name, value=value, a_value=with_article(str(value)))
        for fact, value in zip(facts, values, strict=True)
    ]
    rng.shuffle(sentences)
    keys = ["name", *(fact.key for fact in facts)]
    fields = {
        "blank": json.dumps({"name": ""} | {fact.key: fact.blank for fact in facts}),
        "keys": ", ".join(keys[:-1]) + " and " + keys[-1],
        "facts": " ".join(sentences),
    }
    return Case(fields, json.dumps(dict(zip(keys, [name, *values], strict=True))))


KINDS: Final[Mapping[str, Callable[[random.Random], Case]]] = {
    "sum": _sum,
    "big_sum": _big_sum,
    "difference": _difference,
    "count": _count,
    "opposite": _opposite,
    "day_after": _day_after,
    "day_before": _day_before,
    "name": _name,
    "repeat": _repeat,
    "spell": _spell,
    "backwards": _backwards,
    "backwards_new": _backwards_new,
    "json": _json,
}
"""How to draw a case of each kind. `sum` adds numbers of one digit and `big_sum` of two; the words of `spell` and
`backwards` are English, except that `spell` invents half of its own and `backwards_new` all of them."""

_KINDS_THAT_KEEP: Final = frozenset({"big_sum", "count", "backwards", "backwards_new"})
