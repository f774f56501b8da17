"""Temperature: logits are divided by it less the row's largest, so that none overflows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.engine.sampling_params import SamplingParams

_LEAST_TEMPERATURE = 1e-30
"""Lower ones, which float32 might take for 0, act like this one."""


def temperatures_of(params: Sequence[SamplingParams], device: torch.device) -> Tensor:
    """A column, float32 [rows, 1]."""
    values = [max(p.temperature, _LEAST_TEMPERATURE) for p in params]
    return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(-1)
