"""The tokenizer made by rule."""

import random

import pytest
from tokenizers import Tokenizer

from benchmarks.synthetic_tokenizer import END_OF_TEXT, synthetic_tokenizer, three_letter_words

VOCAB_SIZE = 49152


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return synthetic_tokenizer(VOCAB_SIZE)


def test_it_has_exactly_the_size_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size(with_added_tokens=True) == VOCAB_SIZE
    assert tokenizer.token_to_id(END_OF_TEXT) == VOCAB_SIZE - 1


def test_every_token_but_the_end_has_text_of_its_own(tokenizer: Tokenizer) -> None:
    texts = [tokenizer.decode([token]) for token in range(256, VOCAB_SIZE - 1)]
    assert all(texts)
    assert len(set(texts)) == len(texts)


def test_three_letter_words_read_back_as_themselves(tokenizer: Tokenizer) -> None:
    ids = random.Random(0).choices(three_letter_words(), k=500)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text).ids == ids
    assert {len(word) for word in text.split()} == {3}


def test_any_text_is_encoded_without_loss(tokenizer: Tokenizer) -> None:
    text = "Ünïcode, 日本語, tabs\tand 123"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("vocab_size", [100, 10**6])
def test_sizes_that_the_rule_cannot_fill_are_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="between"):
        synthetic_tokenizer(vocab_size)
