"""Measure a checkpoint on stories and questions that training never saw.

    python -m distllm.engine.embedded.evaluate [PATH]

Runs on transformers alone, in float32 and greedily, so it measures the model and not this project's engine.
"""

import argparse
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from distllm.engine.embedded import checkpoint_path
from distllm.engine.embedded.corpus import Chat, Document, Message, Story
from distllm.engine.embedded.held_out import held_out_texts
from distllm.engine.embedded.packing import IGNORED, pack
from distllm.engine.embedded.questions import KINDS, Question, held_out_question
from distllm.engine.embedded.tokenization import encode

_BATCH_SIZE: Final = 32
_MAX_ANSWER_TOKENS: Final = 80

Row = tuple[torch.Tensor, torch.Tensor]
"""Token ids and targets, both int64 [1, num_tokens]."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under evaluation and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, path: Path) -> "Subject":
        """Any chat checkpoint in Hugging Face format, its weights widened to float32."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(path))


def held_out_stories(num_stories: int, seed: int) -> list[Document]:
    return [Story(text) for text in held_out_texts(num_stories, seed)]


def held_out_questions(kind: str, num_questions: int, seed: int) -> list[Question]:
    """Up to `num_questions` different ones; fewer where there are no more, as of days."""
    rng = random.Random(f"held-out questions {kind} {seed}")
    drawn = (held_out_question(kind, rng) for _ in range(20 * num_questions))
    return list(islice(dict.fromkeys(drawn), num_questions))


def as_chat(question: Question) -> Document:
    return Chat((Message("user", question.prompt), Message("assistant", question.answer)))


def rows_alone(subject: Subject, documents: Iterable[Document]) -> Iterator[Row]:
    """Each document in a row of its own."""
    for document in documents:
        tokenized = [*encode(document, subject.tokenizer)]
        yield pack(iter([tokenized]), 1, len(tokenized), subject.tokenizer.pad_token_id)


def rows_far(subject: Subject, documents: Iterable[Document], row_length: int) -> Iterator[Row]:
    """Rows full of documents, of which only the second half is scored."""
    tokenized = ([*encode(document, subject.tokenizer)] for document in documents)
    while True:
        token_ids, targets = pack(tokenized, 1, row_length, subject.tokenizer.pad_token_id)
        if not bool((targets != IGNORED).any()):
            return
        targets[:, : row_length // 2] = IGNORED
        yield token_ids, targets


def perplexity(subject: Subject, rows: Iterable[Row]) -> float:
    """Of the tokens that a model is to learn."""
    total, count = 0.0, 0
    for token_ids, targets in rows:
        with torch.inference_mode():
            logits = subject.model(input_ids=token_ids, use_cache=False).logits
        total += functional.cross_entropy(logits[0], targets[0], reduction="sum", ignore_index=IGNORED).item()
        count += int((targets != IGNORED).sum())
    return math.exp(total / count)


def answers(subject: Subject, prompts: Sequence[str]) -> list[str]:
    """The model's greedy answers to `prompts`, each alone in a chat without a system message."""
    found: list[str] = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + _BATCH_SIZE]]
        inputs = subject.tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        generated = subject.model.generate(**inputs, max_new_tokens=_MAX_ANSWER_TOKENS, do_sample=False)
        new_ids = generated[:, inputs["input_ids"].shape[1] :]
        found += subject.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return found


def report(subject: Subject, num_questions: int, num_stories: int, seed: int) -> Iterator[str]:
    """The lines that the command prints, each as soon as it is known."""
    stories = held_out_stories(num_stories, seed)
    questions = {kind: held_out_questions(kind, num_questions, seed) for kind in KINDS}
    chats = [as_chat(question) for asked in questions.values() for question in asked]
    context = subject.model.config.max_position_embeddings
    yield "held-out perplexity of a token"
    yield f"  {f'{num_stories} stories':<36} {perplexity(subject, rows_alone(subject, stories)):8.3f}"
    far = f"the same, {context // 2} to {context} tokens on"
    yield f"  {far:<36} {perplexity(subject, rows_far(subject, stories, context)):8.3f}"
    yield f"  {f'{len(chats)} chat answers':<36} {perplexity(subject, rows_alone(subject, chats)):8.3f}"
    yield "exact answers, greedy, in wordings never trained on"
    for kind, asked in questions.items():
        given = answers(subject, [question.prompt for question in asked])
        right = sum(answer == question.answer for answer, question in zip(given, asked, strict=True))
        yield f"  {kind:<15} {right:4} of {len(asked):4} {right / len(asked):18.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distllm.engine.embedded.evaluate",
        description="Print held-out perplexity and the rate of exact answers to each kind of question.",
        epilog="Questions come in wordings that training never uses. Sums of two-digit numbers, counting and "
        "spelling backwards are also asked of numbers and words that training never asks of.",
    )
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        default=checkpoint_path(),
        help="checkpoint directory (default: the embedded one)",
    )
    parser.add_argument(
        "--questions", type=int, default=300, help="most questions of a kind (default: %(default)s)"
    )
    parser.add_argument("--stories", type=int, default=300, help="stories to score (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of stories and questions (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for line in report(Subject.load(options.path), options.questions, options.stories, options.seed):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
