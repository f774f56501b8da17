"""Weights where there are no kernels: torch's products are the same wherever a file has them."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.config import AttentionBackendName, EngineConfig
from distllm.engine.forward import ModelForward
from tests.engine.conftest import NUM_BLOCKS
from tests.engine.offload.steps import build
from tests.engine.test_forward import Part, make_stories

ALIGNMENT = 64
STEPS = ((0, 39), (39, 40))
"""The last of one row: its products are other ones than those of several."""


def beginning_at(remainder: int, checkpoint: Path, path: Path) -> Path:
    """A copy whose first tensor begins so many bytes behind a multiple of the alignment."""
    shutil.copytree(checkpoint, path)
    (shard,) = path.glob("*.safetensors")
    content = shard.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = content[8 : 8 + length].rstrip()
    header += b" " * ((remainder - 8 - len(header)) % ALIGNMENT)
    shard.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return path


def serve(checkpoint: Path, backend: AttentionBackendName) -> ModelForward:
    config = EngineConfig(
        model=str(checkpoint),
        device="cpu",
        max_model_len=64,
        num_blocks=NUM_BLOCKS,
        num_threads=1,
        attention_backend=backend,
    )
    forward = build(config).runner.forward
    assert isinstance(forward, ModelForward)
    return forward


def logits(forward: ModelForward) -> Tensor:
    (story,) = make_stories(3, [40])
    steps = [build_step_tensors([Part(story, *span).chunk()], range(span[1] - span[0])) for span in STEPS]
    return torch.cat([forward(step) for step in steps])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["llama", "llama-odd", "gpt2", "qwen2_moe", "gpt_oss"])
def test_bits_do_not_depend_on_where_a_file_has_its_weights(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, backend: AttentionBackendName
) -> None:
    aligned, *others = (
        logits(serve(beginning_at(remainder, checkpoint(kind), tmp_path / str(remainder)), backend))
        for remainder in (0, 8, 20)
    )
    for other in others:
        assert torch.equal(other, aligned)


def test_tied_weights_that_are_moved_stay_tied(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = serve(beginning_at(8, checkpoint("llama"), tmp_path / "moved"), "reference").model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.data_ptr() % ALIGNMENT == 0
