"""Logits of windows of token ids from a model's stages, all in this process, with any codec between them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.checkpoint import open_checkpoint
from distllm.engine.config import EngineConfig
from distllm.engine.interface import BLOCK_SIZE, BlockId, SequenceChunk, SequenceId
from distllm.engine.loading import load_config
from distllm.engine.pipeline.coordinator.division import divide_evenly
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.stage_model.stage_forward import StageForward
from distllm.engine.pipeline.wire.activation_codec import CODECS
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.served_model import prepare_model


class StagedPredictor:
    """A model over `num_stages`, for windows of up to `max_tokens`.

    Raises CheckpointError or ValueError, each with one line for the operator.
    """

    def __init__(self, config: EngineConfig, num_stages: int, max_tokens: int) -> None:
        num_layers = _num_layers(config)
        if not 1 < num_stages <= num_layers:
            raise ValueError(f"--num-stages must be from 2 to {num_layers}, the model's layers, not {num_stages}")
        self._num_blocks = -(-max_tokens // BLOCK_SIZE)
        self._dtype = torch.float32
        self._stages: list[StageForward] = []
        sized = replace(config, max_model_len=self._num_blocks * BLOCK_SIZE)
        for begin, end in divide_evenly(num_layers, num_stages):
            served = prepare_model(sized, lambda *_: None, layers=LayerRange(begin, end, num_layers))
            sized = replace(sized, numerics=served.compute.numerics)  # as a pipeline's stages agree on the first's
            self._dtype = served.dtype
            self._stages.append(served.stage_over(self._num_blocks))

    def predict(self, window: Sequence[int], codec: CodecName) -> Tensor:
        """Logits after each token: float32 [num_tokens, vocab_size]."""
        blocks = [BlockId(block) for block in range(-(-len(window) // BLOCK_SIZE))]
        batch = build_step_tensors([SequenceChunk(SequenceId(0), window, 0, blocks, None)], range(len(window)))
        coder = CODECS[codec]
        activations: Tensor | None = None
        for stage in self._stages:
            output = stage.compute(batch, activations)
            if isinstance(output, NeededLogits):
                return output.whole
            activations = coder.decode(coder.encode(output.cpu()), self._dtype)
        raise AssertionError("the last stage yields logits")


def _num_layers(config: EngineConfig) -> int:
    return int(load_config(open_checkpoint(Path(config.model))).get_text_config().num_hidden_layers)
