"""Tokenizers and chat templates from every place where checkpoints keep them, without torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from distllm.engine.checkpoint import CheckpointError
from distllm.server.chat_template import find_template
from distllm.server.slow_tokenizer import TokenizerError
from distllm.server.tokenizer import TextTooLong, Tokenizer
from tests.server.checkpoints import (
    CHAT_TEMPLATE,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    sentence_piece_model,
    write_checkpoint,
)

OTHER = "{{ messages[0]['content'] }}"


def in_config(directory: Path, value: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))


def as_string(directory: Path) -> None:
    in_config(directory, CHAT_TEMPLATE)


def as_named_list(directory: Path) -> None:
    entries = [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": CHAT_TEMPLATE}]
    in_config(directory, entries)


def as_only_named(directory: Path) -> None:
    in_config(directory, [{"name": "plain", "template": CHAT_TEMPLATE}])


def as_jinja_file(directory: Path) -> None:
    in_config(directory, OTHER)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def as_json_file(directory: Path) -> None:
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


def as_additional_file(directory: Path) -> None:
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(OTHER)
    (directory / "additional_chat_templates" / "default.jinja").write_text(CHAT_TEMPLATE)


@pytest.mark.parametrize(
    "place", [as_string, as_named_list, as_only_named, as_jinja_file, as_json_file, as_additional_file]
)
def test_chat_templates_are_found(tmp_path: Path, place: Callable[[Path], None]) -> None:
    place(tmp_path)
    found = find_template(tmp_path)
    assert found is not None
    assert found.text == CHAT_TEMPLATE


def test_several_named_templates_without_default_are_none(tmp_path: Path) -> None:
    in_config(tmp_path, [{"name": "a", "template": OTHER}, {"name": "b", "template": OTHER}])
    assert find_template(tmp_path) is None


async def test_encoding_equals_transformers_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, byte_fallback_tokenizer(), CHAT_TEMPLATE, bos_token="<s>", eos_token="</s>")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    messages = [{"role": "user", "content": "hello fox"}]
    assert await ours.encode("hello fox") == theirs("hello fox")["input_ids"]
    assert await ours.encode("a", add_special_tokens=False) == theirs("a", add_special_tokens=False)["input_ids"]
    assert await ours.encode_chat(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


async def test_long_texts_encode_as_short_ones_do(byte_level: Tokenizer) -> None:
    text = "the lazy dog 😀 " * 1000
    assert await byte_level.encode(text) == byte_level._backend.encode(text).ids


async def test_truncation_stored_in_a_tokenizer_is_not_applied(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    write_checkpoint(tmp_path, backend)
    ids = await Tokenizer.load(tmp_path).encode("once upon a time there was a fox")
    assert len(ids) == len(byte_level_tokenizer().encode("once upon a time there was a fox").ids)


async def test_bytes_of_tokens_join_to_the_text(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    text = "naïve 😀 fox"
    assert b"".join(map(byte_level.token_bytes, await byte_level.encode(text))).decode() == text
    ids = await byte_fallback.encode(text, add_special_tokens=False)
    assert b"".join(map(byte_fallback.token_bytes, ids)).decode() == " " + text


async def test_a_text_is_too_long_only_where_its_length_proves_it(byte_level: Tokenizer) -> None:
    longest = max(byte_level._backend.get_vocab(), key=len).replace("Ġ", " ")
    for text in (longest * 5000, "x" * 5000):
        num_tokens = len(await byte_level.encode(text))
        assert len(await byte_level.encode(text, max_tokens=num_tokens)) == num_tokens
    with pytest.raises(TextTooLong) as caught:
        await byte_level.encode(longest * 5000, max_tokens=10)
    assert caught.value.least_tokens <= len(await byte_level.encode(longest * 5000))


async def test_a_tokenizer_that_may_drop_characters_is_asked(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.normalizer = normalizers.Strip()
    write_checkpoint(tmp_path, backend)
    assert len(await Tokenizer.load(tmp_path).encode(" " * 100_000 + "fox", max_tokens=5)) < 5


def test_ids_beyond_the_vocabulary_are_empty(byte_level: Tokenizer) -> None:
    assert byte_level.token_bytes(10_000) == b""
    assert byte_level.decode([10_000]) == ""


def test_a_directory_without_tokenizer_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"holds no tokenizer: expected tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 5}'])
def test_a_corrupt_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "tokenizer_config.json is not JSON"),
        ("[]", "tokenizer_config.json must hold a JSON object"),
        ('{"chat_template": [{"name": "default"}]}', "chat_template must be a string, or a list of objects"),
        ('{"chat_template": ["x"]}', "chat_template must be a string, or a list of objects"),
        ('{"chat_template": 5}', "chat_template must be a string, or a list of objects"),
        ('{"added_tokens_decoder": 5}', "cannot be read"),
        ('{"eos_token": 5}', "cannot be read"),
    ],
)
def test_a_corrupt_tokenizer_config_is_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    write_checkpoint(tmp_path, byte_level_tokenizer())
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    assert words in str(caught.value)
    assert "tokenizer_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [False, True])
def test_a_chat_template_that_cannot_be_compiled_is_refused_by_its_file_and_line(
    tmp_path: Path, given: bool
) -> None:
    write_checkpoint(tmp_path / "model", byte_level_tokenizer())
    file = tmp_path / "mine.jinja" if given else tmp_path / "model" / "chat_template.jinja"
    file.write_text("fine\n{% for message in %}")
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path / "model", file if given else None)
    assert str(caught.value).startswith(f"the chat template in {file} is wrong in line 2: ")


def test_a_git_lfs_pointer_instead_of_a_tokenizer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        Tokenizer.load(tmp_path)


def test_a_chat_template_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, byte_level_tokenizer())
    with pytest.raises(TokenizerError, match=r"the chat template .*none\.jinja cannot be read"):
        Tokenizer.load(tmp_path, tmp_path / "none.jinja")


async def test_slow_files_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    backend = byte_level_tokenizer()
    backend.model.save(str(source))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    tokenizer = Tokenizer.load(source)
    assert tokenizer.decode(await tokenizer.encode("the fox")) == "the fox"
    monkeypatch.setattr(subprocess, "run", None)
    assert await Tokenizer.load(source).encode("the fox") == await tokenizer.encode("the fox")


async def test_a_sentencepiece_model_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(sentence_piece_model())
    named = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = Tokenizer.load(source)
    ids = await tokenizer.encode("the fox é", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the fox é"
    assert tokenizer.eos_token_id == 2


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(TokenizerError, match=r"/dev/null.*let XDG_CACHE_HOME name"):
        Tokenizer.load(tmp_path)


def test_unusable_slow_files_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(TokenizerError, match="cannot be converted"):
        Tokenizer.load(tmp_path)


def test_serving_text_does_not_import_torch(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, byte_level_tokenizer(), CHAT_TEMPLATE)
    program = (
        "import sys, asyncio, pathlib, distllm.server.app\n"
        "from distllm.server.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer.load(pathlib.Path({str(tmp_path)!r}))\n"
        "message = {'role': 'user', 'content': 'a <|end|>'}\n"
        "asyncio.run(tokenizer.encode_chat([message]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
