"""Defaults for requests, as generation_config.json, config.json and the tokenizer give them."""

import json
from pathlib import Path

import pytest

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.generation import GenerationDefaults, load_generation_defaults


def write(path: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_without_a_generation_config_the_neutral_values_hold(tmp_path: Path) -> None:
    assert load_generation_defaults(write(tmp_path, {"eos_token_id": 7})) == GenerationDefaults(eos_token_ids=(7,))


def test_sampling_values_are_read_and_do_sample_plays_no_part(tmp_path: Path) -> None:
    generation: dict[str, object] = {
        "do_sample": False,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_new_tokens": 300,
    }
    assert load_generation_defaults(write(tmp_path, {}, generation)) == GenerationDefaults(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.1, max_new_tokens=300
    )


@pytest.mark.parametrize("top_k", [0, -1, None])
def test_a_top_k_that_is_off_keeps_every_token(tmp_path: Path, top_k: int | None) -> None:
    assert load_generation_defaults(write(tmp_path, {}, {"top_k": top_k})).top_k is None


def test_nulls_leave_the_neutral_values(tmp_path: Path) -> None:
    generation = dict.fromkeys(("temperature", "top_p", "min_p", "eos_token_id"))
    assert load_generation_defaults(write(tmp_path, {}, generation)) == GenerationDefaults()


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "eos"),
    [
        ({"eos_token_id": 1}, {"eos_token_id": [2, 3]}, None, (2, 3)),
        ({"eos_token_id": 1}, {"eos_token_id": None}, None, (1,)),
        ({"eos_token_id": 1}, {"eos_token_id": [2, 3]}, 3, (2, 3)),
        ({"eos_token_id": 1}, {"eos_token_id": 2}, 5, (2, 5)),
        ({"text_config": {"eos_token_id": 4}}, None, None, (4,)),
        ({}, None, 0, (0,)),
        ({"eos_token_id": 0}, {}, None, (0,)),
        ({}, {}, None, ()),
    ],
)
def test_end_tokens_are_united_from_everywhere(
    tmp_path: Path,
    config: dict[str, object],
    generation: dict[str, object] | None,
    tokenizer: int | None,
    eos: tuple[int, ...],
) -> None:
    assert load_generation_defaults(write(tmp_path, config, generation), tokenizer).eos_token_ids == eos


@pytest.mark.parametrize("wrong", ["</s>", {"id": 2}, [2, "x"], 1.5, True])
def test_end_tokens_that_are_no_ids_are_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        load_generation_defaults(write(tmp_path, {}, {"eos_token_id": wrong}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", -1, "temperature must be a finite number at least 0 and at most 2, not -1"),
        ("temperature", float("nan"), "temperature must be a finite number, not nan"),
        ("temperature", "0.7", "temperature must be a finite number, not '0.7'"),
        ("top_p", 7, "top_p must be a finite number above 0 and at most 1, not 7"),
        ("min_p", 1.5, "min_p must be a finite number at least 0 and at most 1, not 1.5"),
        ("repetition_penalty", 0, "repetition_penalty must be a finite number above 0, not 0"),
        ("top_k", [5], "top_k must be a finite number, not [5]"),
        ("top_k", float("inf"), "top_k must be a finite number, not inf"),
        ("max_new_tokens", True, "max_new_tokens must be a finite number, not True"),
    ],
)
def test_sampling_values_that_no_request_may_have_are_refused_by_file_and_field(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_generation_defaults(write(tmp_path, {}, {field: value}))
    assert str(caught.value).startswith(f"{tmp_path / 'generation_config.json'}: {words}")


def test_end_tokens_beyond_the_vocabulary_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"vocab_size": 100}, {"eos_token_id": [2, -1, 100]})
    assert load_generation_defaults(tmp_path, 99).eos_token_ids == (2, 99)
    assert caplog.messages == [f"{tmp_path}: eos_token_id -1 is not in the vocabulary of 100"]


def test_a_broken_generation_config_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {})
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read"):
        load_generation_defaults(tmp_path)
