"""What the check before the first request refuses, and what it takes for rounding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, RobertaConfig

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.forward import ModelForward
from distllm.engine.self_check import check_forward
from tests.engine.conftest import Served

SEQUENCES = ((3, 1, 4, 1, 5, 9, 2, 6, 5), (2, 7, 1, 8, 2, 8, 1, 8, 2))
PlainLogits = Callable[[str, tuple[int, ...]], Tensor]
Check = Callable[[str, int], None]


@pytest.fixture
def check(serve: Callable[..., Served], plain_logits: PlainLogits) -> Check:
    """Checks a model of the given type against logits of which those of some tokens are wrong."""

    def run(dtype: str, num_wrong: int) -> None:
        executor = serve("mixtral", dtype).executor
        assert isinstance(executor, LocalExecutor)
        expected = torch.stack([plain_logits("mixtral", ids) for ids in SEQUENCES])
        expected.view(-1, expected.shape[-1])[:num_wrong] *= -1
        assert isinstance(executor.runner.forward, ModelForward)
        check_forward(executor.runner.forward, expected)

    return run


def test_one_wrong_token_in_full_precision_is_refused(check: Check) -> None:
    check("float32", 0)
    with pytest.raises(CheckpointError, match="MixtralForCausalLM cannot be served: in paged steps"):
        check("float32", 1)


def test_a_token_that_rounding_sent_to_another_expert_is_no_reason_to_refuse(check: Check) -> None:
    check("bfloat16", 6)
    with pytest.raises(CheckpointError, match="differ by 2"):
        check("bfloat16", 9)


def test_a_model_that_reads_positions_from_token_ids_is_refused(tmp_path: Path) -> None:
    """RoBERTa counts positions from after the padding token's id; nothing in its config says so."""
    config = RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=64, is_decoder=True, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="RobertaForCausalLM cannot be served: in paged steps"):
        build_executor(EngineConfig(model=str(tmp_path), device="cpu", num_threads=1), lambda *_: None)
