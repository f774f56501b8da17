"""Quantizes a checkpoint once, tensor by tensor, into another that any reader of compressed-tensors serves.

`python -m distllm.engine.quantizing` reads a QuantizeRequest as JSON: a program of its own, so that
`distllm quantize` need not import torch. The output directory appears whole or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distllm.engine.checkpoint import (
    INDEX_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    CheckpointError,
    StoredTensor,
    open_checkpoint,
)
from distllm.engine.child_program import answer
from distllm.engine.injection.policies import has_experts
from distllm.engine.injection.quantizing import is_quantizable
from distllm.engine.injection.stored_weights import PlaceFinder
from distllm.engine.loading import build_on_meta, load_config
from distllm.engine.quantization.config import QuantizationConfig, QuantizationError, WeightScheme
from distllm.engine.quantization.export import check_exportable, planned_fields, quantization_config, stored_fields
from distllm.engine.quantization.family import quantization_name
from distllm.engine.quantization.naming import is_mlp
from distllm.engine.quantization.quantizer import check_divides, quantize
from distllm.engine.quantization.safetensors_writer import PlannedTensor, write_safetensors
from distllm.engine.quantizing_report import Quantized, QuantizeRequest

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class _Step:
    """A stored tensor and how it is written: quantized by `scheme`, or as it is."""

    tensor: StoredTensor
    scheme: WeightScheme | None
    planned: Sequence[PlannedTensor]

    @property
    def layer(self) -> str:
        return self.tensor.name.removesuffix(".weight")


def quantize_checkpoint(path: Path, out: Path, config: QuantizationConfig) -> Quantized:
    """Write the quantized checkpoint. Raises CheckpointError, QuantizationError or OSError, with nothing left."""
    if out.exists():
        raise QuantizationError(f"{out} exists already; name a directory that does not")
    check_exportable(config)
    checkpoint = open_checkpoint(path)
    quantization_name(checkpoint, config)
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16)
    steps = _plan(model, checkpoint, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _copy_small_files(path, partial)
        kept = {step.layer for step in steps if step.scheme is None}
        ignored = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name in kept]
        document = {**checkpoint.config, "quantization_config": quantization_config(config, ignored)}
        (partial / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        planned = [plan for step in steps for plan in step.planned]
        write_safetensors(partial / WEIGHTS_NAME, planned, _tensors(steps))
        partial.chmod(0o755)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Quantized(checkpoint.num_bytes, sum(plan.num_bytes for plan in planned))


def _plan(model: PreTrainedModel, checkpoint: Checkpoint, config: QuantizationConfig) -> list[_Step]:
    find_place = PlaceFinder(model)
    steps = []
    for tensor in checkpoint.tensors.values():
        scheme = _scheme(model, find_place, tensor, config)
        if scheme is None:
            planned = [PlannedTensor(tensor.name, tensor.dtype, tensor.shape, tensor.num_bytes)]
        else:
            layer, shape = tensor.name.removesuffix(".weight"), (tensor.shape[0], tensor.shape[1])
            scale_dtype = torch.float32 if tensor.dtype == "F32" else torch.bfloat16
            planned = planned_fields(layer, shape, scheme, scale_dtype)
        steps.append(_Step(tensor, scheme, planned))
    if all(step.scheme is None for step in steps):
        raise QuantizationError(f"{checkpoint.path} has no linear layer that could be quantized")
    return steps


def _scheme(
    model: PreTrainedModel, find_place: PlaceFinder, tensor: StoredTensor, config: QuantizationConfig
) -> WeightScheme | None:
    """How a stored tensor is quantized, None where it stays. The output head stays, as other readers expect."""
    if tensor.name.endswith(".weight") and len(tensor.shape) > 1:
        parameter, _ = find_place(tensor.name.removesuffix(".weight"))
    else:
        parameter = tensor.name
    owner = parameter.rpartition(".")[0]
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    if module is model.get_output_embeddings() or not is_quantizable(owner, module) or len(tensor.shape) < 2:
        return None
    if isinstance(module, Conv1D) or (has_experts(module) and len(tensor.shape) > 2):
        kind = "transposed" if isinstance(module, Conv1D) else "for all experts in one"
        raise QuantizationError(
            f"{tensor.name} is stored {kind}, which has no place in the format: "
            "serve the checkpoint with --quantization instead"
        )
    if tensor.dtype not in _FLOATS:
        raise QuantizationError(f"{tensor.name} is stored as {tensor.dtype}, which is not a floating type")
    scheme = config.mlp if is_mlp(owner) else config.linear
    check_divides(tensor.name.removesuffix(".weight"), tensor.shape[1], scheme)
    return scheme


@torch.inference_mode()
def _tensors(steps: Sequence[_Step]) -> Iterator[Tensor]:
    """What is written, in order; each stored tensor is read when its turn comes."""
    for step in tqdm(steps, unit="tensor", disable=None):
        with safe_open(step.tensor.shard, framework="pt", device="cpu") as file:
            weight = file.get_tensor(step.tensor.name)
        if step.scheme is None:
            yield weight
        else:
            yield from stored_fields(quantize(weight, step.scheme))


def _copy_small_files(source: Path, to: Path) -> None:
    """Tokenizer, chat template and what else lies beside the weights."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in _NOT_COPIED and file.name not in (INDEX_NAME, "config.json"):
            shutil.copyfile(file, to / file.name)


def _quantize(request: QuantizeRequest) -> Quantized:
    return quantize_checkpoint(Path(request.path), Path(request.out), request.config)


if __name__ == "__main__":
    answer(QuantizeRequest, _quantize, (CheckpointError, QuantizationError, OSError))
