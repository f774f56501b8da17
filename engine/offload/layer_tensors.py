"""The tensors of one decoder layer, whose contents lie elsewhere and are given back for as long as it computes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.engine.offload.disk_file import pages


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor and where its content lies, from the beginning of its layer's."""

    tensor: Tensor
    shape: torch.Size
    dtype: torch.dtype
    begin: int
    num_bytes: int


class LayerTensors:
    """A layer's pieces, which lie one after the other in a store, each from a whole page on."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.begin = 0
        self.num_bytes = 0

    def add(self, tensor: Tensor, begin: int) -> None:
        """`tensor`, whose content now lies at `begin` in the store, loses it until `bind`."""
        if not self.pieces:
            self.begin = begin
        assert begin == self.begin + self.num_bytes, "a layer's tensors were stored out of turn"
        self.pieces.append(Piece(tensor, tensor.shape, tensor.dtype, self.num_bytes, tensor.nbytes))
        self.num_bytes += pages(tensor.nbytes)
        _empty(tensor)

    def bind(self, buffer: Tensor) -> None:
        """Let the tensors be views of `buffer`, uint8 [at least num_bytes], which holds the layer's content."""
        for piece in self.pieces:
            content = buffer[piece.begin : piece.begin + piece.num_bytes]
            piece.tensor.data = content.view(piece.dtype).view(piece.shape)

    def unbind(self) -> None:
        """Let go of the buffer; the tensors are empty."""
        for piece in self.pieces:
            _empty(piece.tensor)


def content_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in host memory, in the order of its elements."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def _empty(tensor: Tensor) -> None:
    tensor.data = tensor.data.new_empty(0)
