"""Says why a checkpoint's architecture cannot be served, from its config.json alone.

`python -m distllm.engine.servable DIRECTORY` prints one line, or nothing where it can be: a program of its own, so
that `distllm plan` need not import torch.
"""

import sys
from pathlib import Path

import torch

from distllm.engine.checkpoint import Checkpoint, CheckpointError, read_json
from distllm.engine.injection.probe import discover_layers
from distllm.engine.loading import build_on_meta, load_config


def why_not(path: Path) -> str | None:
    """The reason, or None. The model is built with weights that are never filled, so it takes next to no memory."""
    try:
        checkpoint = Checkpoint(path, read_json(path / "config.json"), {})
        model = build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16)
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.zero_()
        discover_layers(model.eval().requires_grad_(False))
    except CheckpointError as error:
        return str(error)
    return None


if __name__ == "__main__":
    if reason := why_not(Path(sys.argv[1])):
        sys.stdout.write(reason + "\n")
