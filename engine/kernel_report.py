"""Finds what would run each module of a checkpoint, by building its model without weights.

`python -m distllm.engine.kernel_report` reads an Examination as JSON and prints the table as JSON: a program of
its own, so that `distllm plan` need not import torch.
"""

import torch

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.child_program import answer
from distllm.engine.compute import Compute
from distllm.engine.examination import Examination, KernelReport, KernelRow
from distllm.engine.injection.kernel_table import Kernels, kernel_table
from distllm.engine.injection.probe import discover_layers
from distllm.engine.injection.weight_kinds import modules_kept_apart, weight_kinds
from distllm.engine.loading import build_on_meta, load_config
from distllm.engine.quantization.family import quantization_name
from distllm.engine.rehearsal import open_examined, rehearse


def report(examination: Examination) -> list[KernelRow]:
    """The table of the checkpoint in question, of the first rank's part. Raises CheckpointError or ValueError."""
    checkpoint = open_examined(examination)
    rehearsed = next(rehearse(examination))
    compute, schemes = rehearsed.compute, rehearsed.schemes
    stored = quantization_name(checkpoint, None)
    kinds = weight_kinds(rehearsed.model, schemes, stored)
    weights = {name: _packed(kind, weight.dtype, compute) for name, (kind, weight) in kinds.items()}
    apart = modules_kept_apart(rehearsed.model, schemes)
    model = build_on_meta(checkpoint, load_config(checkpoint), rehearsed.dtype)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    layers = discover_layers(model.eval().requires_grad_(False))
    return kernel_table(model, layers, Kernels(compute.name, weights, apart, compute.why_plain))


def _packed(kind: str, dtype: torch.dtype, compute: Compute) -> str:
    if compute.kernels is None:
        return kind
    return f"packed {kind}" + (f" ({compute.kernels.bf16_variant})" if dtype == torch.bfloat16 else "")


if __name__ == "__main__":
    answer(Examination, lambda question: KernelReport(report(question)), (CheckpointError, ValueError))
