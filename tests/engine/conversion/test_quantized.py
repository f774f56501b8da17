"""Checkpoints that are stored quantized, converted for ranks: served as if sliced, and the same file again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.distributed.division import CannotDivide
from distllm.engine.quantization.config import QuantizationConfig
from distllm.engine.quantizing import quantize_checkpoint
from tests.engine.conversion.test_serving import load_in_turn, logits
from tests.engine.quantization.other_formats import fp8
from tests.engine.test_stored_quantization import FORMATS, write

Checkpoints = Callable[[str], Path]
_in_turn = load_in_turn
SMALL_BLOCKS = (fp8(16), {"quant_method": "fp8", "weight_block_size": [16, 16]})
DIVISIBLE = {**FORMATS, "fp8 a block": SMALL_BLOCKS}
del DIVISIBLE["gptq sorted"]


def there_and_back(source: Path, to: Path, size: int) -> Path:
    """The ranks' directory, once the way back has given the file that was converted."""
    ranks = convert_checkpoint_to_deepspeed(source, to / "ranks", size).parent
    convert_checkpoint_to_deepspeed(ranks, to / "back", 1)
    for name in ("model.safetensors", "config.json"):
        assert (to / "back" / name).read_bytes() == (source / name).read_bytes()
    return ranks


@pytest.fixture
def written(checkpoint: Checkpoints, tmp_path: Path) -> Callable[[str, str], Path]:
    """The named model's checkpoint in the named format, its tensors in the order in which they are converted."""

    def make(kind: str, name: str) -> Path:
        packed, _ = write(checkpoint(kind), tmp_path, *DIVISIBLE[name])
        return convert_checkpoint_to_deepspeed(packed, tmp_path / "source", 1).parent

    return make


@pytest.mark.parametrize("name", DIVISIBLE)
def test_ranks_serve_what_they_would_slice(
    written: Callable[[str, str], Path], tmp_path: Path, load_in_turn: None, name: str
) -> None:
    """To the bit, but where a part's blocks make larger groups than the whole's, which is another order of sums."""
    source = written("llama", name)
    ranks = there_and_back(source, tmp_path, 2)
    tolerance = 1e-4 if name == "fp8 a partial block" else 0.0
    torch.testing.assert_close(logits(ranks, 2), logits(source, 2), atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("kind", ["mixtral", "phi3", "qwen2"])
def test_experts_and_fused_layers_are_divided_too(
    written: Callable[[str, str], Path], tmp_path: Path, load_in_turn: None, kind: str
) -> None:
    source = written(kind, "gptq with zero points")
    ranks = there_and_back(source, tmp_path, 2)
    assert torch.equal(logits(ranks, 2), logits(source, 2))


def test_what_distllm_quantizes_is_divided(checkpoint: Checkpoints, tmp_path: Path, load_in_turn: None) -> None:
    config = QuantizationConfig(bits=4, group_size=32, symmetric=False)
    quantize_checkpoint(checkpoint("mistral"), tmp_path / "quantized", config)
    source = convert_checkpoint_to_deepspeed(tmp_path / "quantized", tmp_path / "source", 1).parent
    ranks = there_and_back(source, tmp_path, 2)
    assert torch.equal(logits(ranks, 2), logits(source, 2))


def test_every_code_is_on_one_rank(written: Callable[[str, str], Path], tmp_path: Path) -> None:
    source = written("llama", "gptq")
    ranks = convert_checkpoint_to_deepspeed(source, tmp_path / "ranks", 2).parent
    whole, *parts = (load_file(file) for file in (source / "model.safetensors", *sorted(ranks.glob("tp_*"))))
    words = [name for name in whole if name.endswith("qweight")]
    assert words
    assert all(whole[name].numel() == sum(part[name].numel() for part in parts) for name in words)


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("llama", "gptq sorted", "down_proj cannot be divided over ranks: its inputs are sorted by their groups"),
        ("qwen3", "fp8 a block", "k_proj cannot be divided over ranks: blocks of 32 features would be cut"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(
    checkpoint: Checkpoints, tmp_path: Path, kind: str, name: str, reason: str
) -> None:
    packed, _ = write(checkpoint(kind), tmp_path, *FORMATS[name])
    with pytest.raises(CannotDivide, match=reason):
        convert_checkpoint_to_deepspeed(packed, tmp_path / "ranks", 2)
    assert not (tmp_path / "ranks").exists()


def test_a_group_that_three_ranks_would_cut_is_refused_by_name(
    written: Callable[[str, str], Path], tmp_path: Path
) -> None:
    with pytest.raises(
        CannotDivide, match=r"o_proj cannot be divided over ranks: groups of 32 inputs would be cut"
    ):
        convert_checkpoint_to_deepspeed(written("llama", "gptq"), tmp_path / "ranks", 3)
