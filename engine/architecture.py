"""What serving an architecture means, found from a checkpoint's config.json alone by building it without weights.

`python -m distllm.engine.architecture` reads an Examination as JSON, rehearses what would be loaded, and prints the
figures so: a program of its own, so that `distllm plan` need not import torch.
"""

from pathlib import Path

import torch

from distllm.engine.checkpoint import Checkpoint, CheckpointError, read_json
from distllm.engine.child_program import answer
from distllm.engine.examination import Architecture, Examination
from distllm.engine.injection.probe import discover_layers
from distllm.engine.loading import build_on_meta, load_config
from distllm.engine.rehearsal import rehearse


def examine(path: Path) -> Architecture:
    """The figures; weights are never filled, so they take next to no memory. Raises CheckpointError."""
    checkpoint = Checkpoint(path, read_json(path / "config.json"), {})
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    shapes = [layer.shape for layer in discover_layers(model.eval().requires_grad_(False))]
    text = model.config.get_text_config()
    return Architecture(
        kv_elements_per_token=sum(shape.num_kv_heads * (shape.key_dim + shape.value_dim) for shape in shapes),
        kv_heads_per_token=sum(shape.num_kv_heads for shape in shapes),
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
    )


def examine_all(examination: Examination) -> Architecture:
    """The figures, once nothing speaks against loading the weights. Raises CheckpointError or ValueError."""
    architecture = examine(Path(examination.config.model))
    for _ in rehearse(examination):
        pass
    return architecture


if __name__ == "__main__":
    answer(Examination, examine_all, (CheckpointError, ValueError))
