"""Checkpoints are called what people call them."""

from pathlib import Path

import pytest

from distllm.engine.checkpoint_name import checkpoint_name
from distllm.engine.embedded import checkpoint_path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/llama-8b", "llama-8b"),
        ("/root/.cache/huggingface/hub/models--org--model-7b/snapshots/0123abc", "org/model-7b"),
        ("/data/snapshots/nightly", "nightly"),
    ],
)
def test_a_checkpoint_has_the_name_of_its_folder_or_of_the_hub(path: str, name: str) -> None:
    assert checkpoint_name(Path(path)) == name


def test_the_embedded_model_has_its_own() -> None:
    assert checkpoint_name(checkpoint_path()) == "distllm-embedded"
