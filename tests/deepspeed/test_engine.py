"""optimize_with_deepspeed and init_inference, end to end: a decoder in memory on two ranks, and on one."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import distllm
import distllm.deepspeed
from distllm import InferenceEngine, InvalidOption, init_inference, optimize_with_deepspeed
from distllm.deepspeed import number_type
from distllm.engine.embedded import checkpoint_path
from distllm.engine.hub import ModelNotFound
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.errors import ContextLengthExceeded
from tests.deepspeed.conftest import make_decoder

PROMPT = "Once upon a time"


@pytest.fixture(scope="module", autouse=True)
def patient_ranks() -> Iterator[None]:
    """Ranks of a machine that is busy with other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTLLM_RANK_TIMEOUT_S", "30")
        patch.setenv("DISTLLM_KV_CACHE_MEMORY", "0.05")
        yield


@pytest.fixture(scope="module")
def decoder() -> LlamaForCausalLM:
    return make_decoder()


@pytest.fixture(scope="module")
def two_ranks(decoder: LlamaForCausalLM, tokenizer: Any) -> Iterator[InferenceEngine]:
    """As the issue writes it."""
    engine = optimize_with_deepspeed(
        model=decoder,
        tokenizer=tokenizer,
        tensor_parallel_size=2,
        dtype=torch.float16,
        use_quantization=True,
        quantization_config={"bits": 8, "group_size": 128, "mlp_extra_grouping": True},
    )
    with engine:
        yield engine


@pytest.fixture(scope="module")
def one_rank(tokenizer: Any) -> Iterator[InferenceEngine]:
    """The embedded model in memory, as transformers loads it, in float32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
    with init_inference(model, {"dtype": "fp32", "max_out_tokens": 256}, tokenizer) as engine:
        yield engine


def test_two_ranks_turn_text_into_text_and_lists_into_lists(two_ranks: InferenceEngine) -> None:
    assert two_ranks.info.num_ranks == 2
    assert "w8g128x" in two_ranks.info.numerics
    text = two_ranks.generate("DeepSpeed is", max_new_tokens=50)
    assert isinstance(text, str)
    assert text
    both = two_ranks.generate(["DeepSpeed is", PROMPT], max_new_tokens=50)
    assert both[0] == text
    assert len(both) == 2
    assert two_ranks.generate([], max_new_tokens=5) == []


def test_a_stream_brings_the_text_of_generate_in_pieces(two_ranks: InferenceEngine) -> None:
    pieces = list(two_ranks.stream(PROMPT, max_new_tokens=24))
    assert len(pieces) > 1
    assert "".join(pieces) == two_ranks.generate(PROMPT, max_new_tokens=24)


def test_a_stream_that_is_left_ends_and_the_engine_goes_on(two_ranks: InferenceEngine) -> None:
    stream = two_ranks.stream(PROMPT, max_new_tokens=200)
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert two_ranks.generate(PROMPT, max_new_tokens=4)


def test_the_model_that_was_taken_over_stays_usable(two_ranks: InferenceEngine, decoder: LlamaForCausalLM) -> None:
    with torch.inference_mode():
        logits = decoder(torch.tensor([[5, 6, 7]])).logits
        expected = make_decoder()(torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(logits, expected)
    assert two_ranks.module is decoder


def test_greedy_text_is_that_of_transformers(one_rank: InferenceEngine, tokenizer: Any) -> None:
    prompts = [PROMPT, "The fox"]
    assert isinstance(one_rank.module, nn.Module)
    model: Any = one_rank.module
    for prompt, text in zip(prompts, one_rank.generate(prompts, max_new_tokens=32), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=32, do_sample=False, temperature=None, top_p=None, top_k=None)
        assert prompt + text == tokenizer.decode(whole[0], skip_special_tokens=True)


def test_options_have_the_names_and_meanings_of_transformers(one_rank: InferenceEngine) -> None:
    greedy = one_rank.generate(PROMPT, max_new_tokens=12)
    assert one_rank.generate(PROMPT, max_new_tokens=12, temperature=2.0, do_sample=False) == greedy
    assert one_rank.generate(PROMPT, max_new_tokens=12, do_sample=True, top_k=1) == greedy
    sampled = [one_rank.generate(PROMPT, max_new_tokens=12, temperature=1.5, top_k=0, seed=3) for _ in range(2)]
    assert sampled[0] == sampled[1] != greedy
    assert one_rank.generate(PROMPT, max_new_tokens=12, return_full_text=True) == PROMPT + greedy
    first_word = greedy.split()[0]
    assert one_rank.generate(PROMPT, max_new_tokens=12, stop=[first_word]) == greedy.partition(first_word)[0]
    assert "".join(one_rank.stream(PROMPT, max_new_tokens=12, return_full_text=True)) == PROMPT + greedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 5}, "max_tokens is no option of generate; did you mean max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"temperature": 9.0}, "temperature must be a finite number"),
        ({"top_p": "high"}, "top_p must be a number, not 'high'"),
        ({"max_new_tokens": 10**9}, r"This model's .*Please shorten the prompt or lower max_new_tokens to \d+"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    one_rank: InferenceEngine, options: dict[str, Any], words: str
) -> None:
    for call in (one_rank.generate, one_rank.stream):
        with pytest.raises((InvalidOption, ContextLengthExceeded), match=f"^{words}"):
            call(PROMPT, **options)


@pytest.mark.parametrize("prompts", [3, [1, 2], None])
def test_prompts_that_are_no_text_are_refused(one_rank: InferenceEngine, prompts: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^prompts must be a text or a list of texts"):
        one_rank.generate(prompts)
    with pytest.raises(InvalidOption, match=r"^prompt must be a text"):
        one_rank.stream(prompts)


def test_max_out_tokens_bound_prompt_and_answer(one_rank: InferenceEngine) -> None:
    assert one_rank.info.max_model_len == 256
    assert one_rank.config.max_out_tokens == 256


def test_closing_ends_every_process_and_a_second_time_does_nothing(tokenizer: Any) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    engine = init_inference(make_decoder(), tokenizer=tokenizer, release_model=True)
    model: Any = engine.module
    assert all(parameter.is_meta for parameter in model.parameters())
    assert engine.generate(PROMPT, max_new_tokens=4)
    engine.close()
    engine.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    with pytest.raises(EngineUnavailable, match="has been closed"):
        engine.generate(PROMPT)


def test_more_context_than_the_model_has_is_refused_and_leaves_nothing(tokenizer: Any) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(InvalidOption, match="min_out_tokens cannot be had: the context is of 256 tokens"):
        init_inference(make_decoder(), tokenizer=tokenizer, min_out_tokens=4096)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize(
    ("level", "stand_in"),
    [("avx512", "bfloat16"), ("avx2", "bfloat16"), ("portable", "float32"), (None, "float32")],
)
def test_float16_on_a_cpu_computes_in_another_type_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, level: str | None, stand_in: str
) -> None:
    number_type._say_once.cache_clear()
    monkeypatch.setattr(number_type, "cpu_level", lambda: level)
    with caplog.at_level(logging.WARNING, logger="distllm.deepspeed"):
        assert [number_type.computed_dtype("float16", "cpu") for _ in range(3)] == [stand_in] * 3
    assert [record.message for record in caplog.records] == [
        f"this CPU computes in {stand_in} instead of float16, for which it has no fast instructions"
    ]
    assert number_type.computed_dtype("float16", "cuda") == "float16"


def test_every_public_name_is_that_of_the_package_as_well() -> None:
    assert all(getattr(distllm, name) is getattr(distllm.deepspeed, name) for name in distllm.deepspeed.__all__)
    assert set(distllm.deepspeed.__all__) <= set(distllm.__all__)
    assert set(distllm.deepspeed._HOMES) == set(distllm.deepspeed.__all__)


def test_a_path_needs_no_tokenizer_and_nothing_is_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        init_inference(tmp_path)
