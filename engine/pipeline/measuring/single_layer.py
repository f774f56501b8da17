"""Runs a model's last layer alone, or all but it: what a layer takes is so told from what runs around it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distllm.engine.batch import StepTensors, build_step_tensors
from distllm.engine.decoder_layers import find_decoder_layers
from distllm.engine.interface import BLOCK_SIZE, BlockId, SequenceChunk, SequenceId
from distllm.engine.pipeline.placement.measuring import MEASURED_ROWS
from distllm.engine.pipeline.stage_model.cutting import BypassedLayer
from distllm.engine.served_model import ServedModel

_CHUNK_TOKENS = 256
_CONTEXT_TOKENS = 256
"""Tokens that a decoding row attends to."""
_RECEIVED_SIZE = 0.05
"""Of random activations that come in: about what embeddings are."""


@dataclass(frozen=True, slots=True)
class _LayerCall:
    """How a forward pass over `batch` calls the layer."""

    batch: StepTensors
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class SingleLayer:
    """Of a stage that is a model's last layer and its head.

    Up to MEASURED_ROWS[-1] rows decode, each over a context; more are one chunk of up to `chunk_tokens`.
    Where ranks share the stage, each has one, and all make the same calls.
    """

    def __init__(self, served: ServedModel) -> None:
        longest = max(1, served.max_model_len - 1)
        max_rows, context_tokens = MEASURED_ROWS[-1], min(_CONTEXT_TOKENS, longest)
        self.chunk_tokens = chunk_tokens = max(min(_CHUNK_TOKENS, longest), max_rows + 1)
        assert served.boundary is not None
        assert served.boundary.layers.is_last
        assert len(served.layers) == 1
        self._context_tokens = context_tokens
        self._max_rows = max_rows
        self._width = None if served.boundary.entrance is None else served.boundary.entrance.width
        blocks_per_row = context_tokens // BLOCK_SIZE + 1
        self._forward = served.forward_over(max(max_rows * blocks_per_row, chunk_tokens // BLOCK_SIZE + 1))
        self._model, self._device, self._dtype = served.model, served.device, served.dtype
        (self._layer,) = find_decoder_layers(served.model, [served.layers[0].module])
        self._name = next(name for name, module in served.model.named_modules() if module is self._layer)
        self._calls: dict[int, _LayerCall] = {}
        self._returns_tuple = not isinstance(self._run_layer(self._call(1)), Tensor)

    def run_layer(self, num_rows: int) -> None:
        """Returns once the device is done."""
        self._run_layer(self._call(num_rows))
        self._finish()

    def run_head(self, num_rows: int) -> None:
        """What runs before and behind the layers, with logits of all rows. Returns once the device is done."""
        self._model.set_submodule(self._name, BypassedLayer(self._layer, returns_tuple=self._returns_tuple))
        try:
            self._forward.run(self._batch(num_rows)).float()
        finally:
            self._model.set_submodule(self._name, self._layer)
        self._finish()

    @torch.inference_mode()
    def _run_layer(self, call: _LayerCall) -> Any:
        with self._forward.cache.running(call.batch.attention):
            return self._layer(*call.args, **call.kwargs)

    def _call(self, num_rows: int) -> _LayerCall:
        """Seen in a forward pass when first asked for."""
        if num_rows not in self._calls:
            batch = self._batch(num_rows)
            seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.append((args, kwargs))

            hook = self._layer.register_forward_pre_hook(note, with_kwargs=True)
            try:
                self._forward.run(batch, self._received(num_rows))
            finally:
                hook.remove()
            ((args, kwargs),) = seen
            self._calls[num_rows] = _LayerCall(batch.to(self._device), args, kwargs)
        return self._calls[num_rows]

    def _received(self, num_rows: int) -> Tensor | None:
        """Activations [num_rows, width]."""
        if self._width is None:
            return None
        return (torch.randn(num_rows, self._width) * _RECEIVED_SIZE).to(self._dtype)

    def _batch(self, num_rows: int) -> StepTensors:
        if num_rows > self._max_rows:
            num_blocks = -(-num_rows // BLOCK_SIZE)
            chunks = [_chunk(0, [0] * num_rows, 0, range(num_blocks))]
            return build_step_tensors(chunks, [num_rows - 1])
        before = self._context_tokens - 1
        blocks_per_row = before // BLOCK_SIZE + 1
        chunks = [
            _chunk(row, [0], before, range(row * blocks_per_row, (row + 1) * blocks_per_row))
            for row in range(num_rows)
        ]
        return build_step_tensors(chunks, range(num_rows))

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _chunk(number: int, token_ids: list[int], num_computed_before: int, blocks: range) -> SequenceChunk:
    return SequenceChunk(SequenceId(number), token_ids, num_computed_before, [*map(BlockId, blocks)], sample=None)
