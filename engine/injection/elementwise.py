"""Keeps torch's elementwise functions row-invariant.

torch runs over a contiguous tensor by vector code and computes the rest at its end by scalar code, which may round
otherwise; some functions take another library's code where the tensor is contiguous. So an element's bits could
depend on how many rows there are, unless rows are as long as whole vector runs and always contiguous.
"""

from torch import Tensor, nn
from torch.nn import functional

VECTOR_RUN = 64
"""Elements that torch's vector loops take at once, at most: two AVX-512 vectors of bf16."""


class RowwiseActivation(nn.Module):
    """An activation function on rows padded to whole vector runs."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        width = x.shape[-1]
        surplus = -width % VECTOR_RUN
        padded = functional.pad(x, (0, surplus)) if surplus else x.contiguous()
        output: Tensor = self.activation(padded)
        return output[..., :width]
