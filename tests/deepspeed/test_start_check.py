"""What a model does not take is refused as an option of the call, before an engine starts."""

from pathlib import Path
from typing import Any

import pytest

from distllm import DeepSpeedConfig, init_inference
from distllm.deepspeed import starting
from distllm.deepspeed.refusal import InvalidOption
from distllm.scheduler.refusals import EngineUnavailable
from tests.deepspeed.conftest import make_decoder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    directory = tmp_path_factory.mktemp("decoder")
    make_decoder().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "LLM", None)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("is_in_memory", [True, False])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_out_tokens": 100000}, "max_out_tokens 100000 is beyond the 256 tokens that the model supports"),
        ({"mp_size": 9}, "tensor_parallel_size cannot be 9: 4 attention heads cannot be divided over 9 ranks"),
        (
            {"mp_size": 2, "injection_policy": {"LlamaDecoderLayer": ["self_attn.q_proj"]}},
            "injection_policy of self_attn the outputs of o_proj are those to add up, not q_proj's",
        ),
        (
            {"injection_policy": {"LlamaDecoderLayer": ["self_attn.out_proj"]}},
            r"injection_policy LlamaDecoderLayer has no linear layer self_attn\.out_proj; did you mean",
        ),
    ],
)
def test_what_does_not_go_with_the_model_is_refused_by_the_option(
    fields: dict[str, Any], words: str, is_in_memory: bool, path: Path, tokenizer: Any
) -> None:
    with pytest.raises(InvalidOption, match=f"^{words}") as caught:
        init_inference(make_decoder() if is_in_memory else path, fields, tokenizer if is_in_memory else None)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_engine")
def test_groups_that_do_not_divide_a_layer_are_refused_by_the_quantization_config(tokenizer: Any) -> None:
    model = make_decoder(hidden_size=96, intermediate_size=160)
    quantization = {"bits": 8, "group_size": 128}
    with pytest.raises(InvalidOption, match=r"^quantization_config cannot be: .*96") as caught:
        init_inference(model, tokenizer=tokenizer, quantization_config=quantization)
    assert "model." in str(caught.value)


def test_what_only_the_engine_finds_is_told_with_the_names_of_fields(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise EngineUnavailable("--max-model-len is too long; give --kv-cache-memory - or --max-num-seqs, not a--b")

    monkeypatch.setattr(starting, "LLM", refuse)
    monkeypatch.setattr(starting, "_memory_refusal", lambda *_: None)
    words = "max_out_tokens is too long; give kv_cache_memory - or max_num_seqs, not a--b"
    with pytest.raises(EngineUnavailable, match=f"^{words}$"):
        starting.start_llm(path, DeepSpeedConfig())
