"""Finds what would run each module of a checkpoint, by building its model without weights.

`python -m distllm.engine.kernel_report` reads an Examination as JSON and prints the table as JSON: a program of
its own, so that `distllm plan` need not import torch.
"""

import torch

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.child_program import answer
from distllm.engine.compute import choose_compute
from distllm.engine.device import resolve_device
from distllm.engine.dtypes import resolve_dtype
from distllm.engine.examination import Examination, KernelReport, KernelRow
from distllm.engine.injection.kernel_table import Kernels, kernel_table
from distllm.engine.injection.probe import discover_layers
from distllm.engine.loading import build_on_meta, load_config
from distllm.engine.quantization.family import quantization_name
from distllm.engine.rehearsal import open_examined


def report(examination: Examination) -> list[KernelRow]:
    """The table of the checkpoint in question. Raises CheckpointError or ValueError."""
    config = examination.config
    checkpoint = open_examined(examination)
    device = resolve_device(config.device)
    dtype: torch.dtype = getattr(torch, resolve_dtype(config.dtype, checkpoint, device.type))
    compute = choose_compute(config, device, dtype)
    model = build_on_meta(checkpoint, load_config(checkpoint), dtype)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    layers = discover_layers(model.eval().requires_grad_(False))
    quantization = quantization_name(checkpoint, config.quantization)
    weights = quantization or str(dtype).removeprefix("torch.")
    if compute.kernels is None:
        return kernel_table(model, layers, Kernels(compute.name, weights, compute.why_plain))
    variant = f" ({compute.kernels.bf16_variant})" if dtype == torch.bfloat16 else ""
    return kernel_table(model, layers, Kernels(compute.name, f"packed {weights}{variant}", None))


if __name__ == "__main__":
    answer(Examination, lambda question: KernelReport(report(question)), (CheckpointError, ValueError))
