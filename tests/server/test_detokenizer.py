"""Incremental detokenisation gives the text of the whole, never half a character."""

import codecs
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distllm.server.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from distllm.server.tokenizer import Tokenizer
from tests.server.checkpoints import (
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    word_piece_tokenizer,
    write_checkpoint,
)

WORDS = st.sampled_from(
    ["fox", " ", "  ", "\n", "é", "中文", "😀", "👍🏽", "e\u0301", "\u200d", "\ufffd", "the lazy"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    made = {"level": byte_level_tokenizer(), "fallback": byte_fallback_tokenizer(), "words": word_piece_tokenizer()}
    special = {"level": {"eos_token": "<|endoftext|>"}, "fallback": {"bos_token": "<s>", "eos_token": "</s>"}}
    base = tmp_path_factory.mktemp("tokenizers")
    return {
        name: Tokenizer.load(write_checkpoint(base / name, made[name], **special.get(name, {}))) for name in made
    }


def run(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@pytest.mark.parametrize("name", ["level", "fallback"])
@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
async def test_pieces_of_any_text_join_to_the_text(tokenizers: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = tokenizers[name]
    token_ids = await tokenizer.encode(text)
    assert "".join(run(tokenizer.detokenizer(), token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
async def test_no_piece_holds_a_replacement_character_that_the_text_lacks(
    tokenizers: dict[str, Tokenizer], text: str
) -> None:
    tokenizer = tokenizers["level"]
    pieces = run(tokenizer.detokenizer(), await tokenizer.encode(text))
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@given(token_ids=st.lists(st.integers(0, 599), max_size=40), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_byte_level_tokens_give_what_decoding_the_whole_gives_but_half_a_character_at_the_end(
    tokenizers: dict[str, Tokenizer], token_ids: list[int], skip: bool
) -> None:
    tokenizer = tokenizers["level"]
    joined = "".join(run(tokenizer.detokenizer(skip), token_ids))
    whole = tokenizer.decode(token_ids, skip_special_tokens=skip)
    visible = [token_id for token_id in token_ids if not (skip and tokenizer.is_special(token_id))]
    content = b"".join(map(tokenizer.token_bytes, visible))
    is_cut = codecs.getincrementaldecoder("utf-8")("replace").decode(content) != content.decode(errors="replace")
    assert joined == (whole.removesuffix("\ufffd") if is_cut else whole)


@given(words=st.lists(st.sampled_from(["the", "fox", "forest", "again", "dog", "1", "+", "zebra"]), max_size=12))
@settings(max_examples=100, deadline=None)
async def test_words_without_bytes_of_their_own_join_to_the_text(
    tokenizers: dict[str, Tokenizer], words: list[str]
) -> None:
    tokenizer = tokenizers["words"]
    token_ids = await tokenizer.encode(" ".join(words))
    assert isinstance(tokenizer.detokenizer(), WindowDetokenizer)
    assert "".join(run(tokenizer.detokenizer(), token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["level", "fallback", "words"])
@given(text=TEXTS.filter(str.strip), cut=st.integers(0, 60))
@example(text=":5/Athe lazy中文the lazy", cut=5)  # the left neighbour stands before four words that show nothing
@settings(max_examples=150, deadline=None)
async def test_prompt_and_primed_continuation_join_to_the_text(
    tokenizers: dict[str, Tokenizer], name: str, text: str, cut: int
) -> None:
    tokenizer = tokenizers[name]
    token_ids = await tokenizer.encode(text)
    prompt_ids, rest_ids = token_ids[:cut], token_ids[cut:]
    of_prompt = tokenizer.detokenizer()
    prompt_text = "".join(of_prompt.push(token_id) for token_id in prompt_ids)
    primed = tokenizer.detokenizer()
    primed.prime(prompt_ids)
    assert prompt_text + "".join(run(primed, rest_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


def test_half_a_character_at_the_end_is_dropped() -> None:
    detokenizer = ByteDetokenizer(lambda token_id: bytes((token_id,)))
    assert run(detokenizer, [0x41, 0xF0, 0x9F, 0x98]) == ["A", "", "", "", ""]


def test_a_broken_byte_does_not_hold_back_what_follows() -> None:
    detokenizer = ByteDetokenizer(lambda token_id: bytes((token_id,)))
    assert run(detokenizer, [0xE4, 0x42, 0x43]) == ["", "\ufffdB", "C", ""]


def test_window_detokeniser_gives_up_waiting_for_text_that_stays_broken() -> None:
    detokenizer = WindowDetokenizer(lambda token_ids: "\ufffd" * len(token_ids))
    pieces = [detokenizer.push(0) for _ in range(12)]
    assert "".join(pieces) + detokenizer.flush() == "\ufffd" * 12
    assert any(pieces)


def test_a_window_drops_half_a_character_at_the_end_and_keeps_what_is_whole() -> None:
    detokenizer = WindowDetokenizer(lambda token_ids: "".join("ab\ufffd"[token_id] for token_id in token_ids))
    assert run(detokenizer, [0, 1, 2, 2]) == ["a", "b", "", "", ""]


def test_only_the_first_visible_space_is_stripped(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers["fallback"]
    space = next(i for i in range(600) if tokenizer.token_bytes(i) == b" ")
    assert "".join(run(tokenizer.detokenizer(), [1, space, space, space])) == "  "
