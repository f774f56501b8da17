"""Loads what a stage holds of a model."""

import torch
from torch import nn
from transformers import PreTrainedModel

from distllm.engine.loading import build_on_meta, load_config, load_weights
from distllm.engine.pipeline.stage_model.boundary import Boundary
from distllm.engine.pipeline.stage_model.cutting import cut
from distllm.engine.pipeline.stage_model.plan import StagePlan


def load_stage(
    plan: StagePlan, dtype: torch.dtype, device: torch.device, *, leaves_unread: bool = False
) -> tuple[PreTrainedModel, Boundary]:
    """The model cut down to the stage, with its weights as `load_weights` leaves them. Raises CheckpointError."""
    model = build_on_meta(plan.checkpoint, load_config(plan.checkpoint), dtype)
    boundary = cut(model, plan.parts, plan.layers, dtype, device)
    model = load_weights(plan.checkpoint, model, dtype, device, leaves_unread=leaves_unread)
    model.register_parameter("stage_anchor", _anchor(dtype, device))
    return model, boundary


def _anchor(dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A parameter without elements, by which a model whose weights are elsewhere knows its type and device."""
    return nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
