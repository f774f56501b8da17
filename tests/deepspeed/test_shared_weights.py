"""Weights in shared memory: a safetensors file without a name, and the tensors themselves in it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from distllm.deepspeed.private_directory import PrivateDirectory
from distllm.deepspeed.shared_weights import CannotShare, SharedWeights


def test_other_readers_see_every_tensor_and_the_module_goes_on_with_them(tmp_path: Path) -> None:
    tensors = {
        "half": nn.Parameter(torch.randn(3, 5).to(torch.bfloat16)),
        "transposed": torch.randn(4, 6).T,
        "bytes": torch.arange(7, dtype=torch.uint8),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
    }
    expected = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    shared = SharedWeights(tensors)
    link = tmp_path / "model.safetensors"
    link.symlink_to(shared.path)
    with safe_open(link, framework="pt") as file:
        for name in tensors:
            assert torch.equal(file.get_tensor(name), expected[name])
    shared.close()
    shared.close()
    assert all(torch.equal(tensors[name].detach(), expected[name]) for name in tensors)


def test_a_tensor_and_the_file_are_one_memory(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(8))
    shared = SharedWeights({"weight": weight})
    with torch.no_grad():
        weight.fill_(3.0)
    (tmp_path / "link").symlink_to(shared.path)
    with safe_open(tmp_path / "link", framework="pt") as file:
        assert torch.equal(file.get_tensor("weight"), torch.full((8,), 3.0))
    shared.close()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(2, device="meta"), "w is on the meta device .*: give the checkpoint's path"),
        (torch.zeros(2, dtype=torch.complex64), "w is a Tensor of complex64, not a plain tensor"),
        (torch.eye(2).to_sparse(), "w is a Tensor of float32, not a plain tensor"),
    ],
)
def test_what_cannot_be_shared_is_named_and_nothing_moves(tensor: torch.Tensor, words: str) -> None:
    first = torch.ones(2)
    address = first.data_ptr()
    with pytest.raises(CannotShare, match=words):
        SharedWeights({"first": first, "w": tensor})
    assert first.data_ptr() == address


def test_a_private_directory_is_gone_once_it_is_closed() -> None:
    directory = PrivateDirectory()
    (directory.path / "file").write_text("x")
    assert directory.path.stat().st_mode & 0o077 == 0
    directory.close()
    directory.close()
    assert not directory.path.exists()
