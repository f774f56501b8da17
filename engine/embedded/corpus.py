"""Endless training text: documents drawn from the grammar by a seed. Knows no tokens."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from distllm.engine.embedded import smalltalk
from distllm.engine.embedded.questions import training_question
from distllm.engine.embedded.stories import draw_hero, tell
from distllm.engine.embedded.words import with_article


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, as the chat template takes it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Story:
    """A document of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A document of one or more exchanges, perhaps behind a system message."""

    messages: tuple[Message, ...]


Document = Story | Chat

_STORY_SHARE: Final = 0.06
"""Of the documents. Stories are long and every token of theirs is learned, so few are enough."""

_KIND_WEIGHTS: Final = {
    "sum": 5, "big_sum": 5, "difference": 4, "count": 2, "opposite": 3, "day_after": 1.5, "day_before": 1.5,
    "name": 3, "repeat": 3, "spell": 4, "backwards": 5, "backwards_new": 4, "json": 6,
    "story": 1, "small talk": 1, "unknown": 1,
}  # fmt: skip


def training_documents(seed: str) -> Iterator[Document]:
    """Stories and chats without end, the same ones for the same `seed`."""
    rng = random.Random(seed)
    while True:
        yield Story(tell(rng)) if rng.random() < _STORY_SHARE else _draw_chat(rng)


def text_of(document: Document) -> str:
    """The words alone, each message behind its role."""
    match document:
        case Story(text):
            return text
        case Chat(messages):
            return "\n".join(f"{message.role}\n{message.content}" for message in messages)


def _draw_chat(rng: random.Random) -> Chat:
    messages: list[Message] = []
    if rng.random() < 0.3:
        messages.append(Message("system", rng.choice(smalltalk.SYSTEM_MESSAGES)))
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        prompt, answer = _draw_exchange(rng)
        messages += (Message("user", prompt), Message("assistant", answer))
    return Chat(tuple(messages))


def _draw_exchange(rng: random.Random) -> tuple[str, str]:
    (kind,) = rng.choices(tuple(_KIND_WEIGHTS), weights=tuple(_KIND_WEIGHTS.values()))
    match kind:
        case "story":
            return _draw_story_request(rng)
        case "small talk":
            said, answers = rng.choice(smalltalk.EXCHANGES)
            return rng.choice(said), rng.choice(answers)
        case "unknown":
            fields = {field: rng.choice(fillers) for field, fillers in smalltalk.FILLERS.items()}
            return rng.choice(smalltalk.UNKNOWN).format(**fields), smalltalk.CANNOT
        case _:
            question = training_question(kind, rng)
            return question.prompt, question.answer


def _draw_story_request(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.3:
        return rng.choice(smalltalk.STORY_REQUESTS), tell(rng)
    hero = draw_hero(rng)
    whom = rng.choice((with_article(hero.kind), hero.name, f"{with_article(hero.kind)} named {hero.name}"))
    return rng.choice(smalltalk.STORY_REQUESTS_OF).format(whom=whom), tell(rng, hero)
