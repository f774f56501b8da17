"""ModelInference and HybridInference: a model by path, by cached name, or in memory."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import LlamaForCausalLM

from distllm import HybridInference, InvalidOption, ModelInference
from distllm.engine.embedded import checkpoint_path
from distllm.engine.hub import ModelNotFound
from tests.deepspeed.conftest import make_decoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPT = "Once upon a time"


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTLLM_KV_CACHE_MEMORY", "0.05")
    monkeypatch.setenv("DISTLLM_RANK_TIMEOUT_S", "30")


@pytest.fixture
def cached_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded model as the hub's cache would hold it."""
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    for file in checkpoint_path().iterdir():
        (repository / "snapshots" / COMMIT / file.name).symlink_to(file)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "owner/tiny"


def test_a_path_gives_model_tokenizer_and_text() -> None:
    with ModelInference(checkpoint_path()) as inference:
        assert isinstance(inference.model, LlamaForCausalLM)
        ids = inference.tokenizer(PROMPT).input_ids
        assert inference.tokenizer.decode(ids) == PROMPT
        text = inference.generate(PROMPT, max_new_tokens=8)
        assert "".join(inference.stream(PROMPT, max_new_tokens=8)) == text
        assert inference.generate([PROMPT], max_new_tokens=8) == [text]
        assert inference.model is inference.model


def test_a_name_in_the_local_cache_is_found_without_a_network(cached_name: str) -> None:
    inference = ModelInference(cached_name)
    assert inference.path.name == COMMIT
    assert inference.tokenizer(PROMPT).input_ids


def test_a_name_that_is_nowhere_is_refused_in_one_line(cached_name: str) -> None:
    with pytest.raises(ModelNotFound, match="owner/other is not on this machine") as caught:
        ModelInference("owner/other")
    assert "\n" not in str(caught.value)


def test_closing_before_anything_ran_is_harmless() -> None:
    ModelInference(checkpoint_path()).close()


def test_hybrid_inference_runs_here_with_or_without_deepspeed(tokenizer: Any) -> None:
    with HybridInference(model_id=checkpoint_path(), use_deepspeed=False) as hybrid:
        text = hybrid.generate(PROMPT, max_new_tokens=8)
        assert text
    with HybridInference(
        model=make_decoder(), tokenizer=tokenizer, tensor_parallel_size=2, use_deepspeed=True, use_quantization=True
    ) as hybrid:
        assert len(hybrid.generate([PROMPT, "The fox"], max_new_tokens=8)) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "model is missing: give model, or model_id"),
        ({"model_id": "x", "coordinator_client": object()}, "coordinator_client must be a CoordinatorClient"),
        ({"model_id": "x", "target_ttft_s": 0}, "target_ttft_s must be seconds above 0, or None"),
        ({"model_id": "x", "target_tpot_s": "1"}, "target_tpot_s must be seconds above 0, or None"),
        (
            {"model_id": "x", "use_deepspeed": False, "tensor_parallel_size": 2},
            "tensor_parallel_size above 1 needs use_deepspeed=True",
        ),
    ],
)
def test_hybrid_inference_refuses_in_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=f"^{words}"):
        HybridInference(**given)
