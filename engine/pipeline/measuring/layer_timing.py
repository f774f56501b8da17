"""Times one layer of a model and its head on this machine, with weights that stand in for the model's."""

import tempfile
from dataclasses import replace
from pathlib import Path

from distllm.engine.config import EngineConfig
from distllm.engine.memory import giving_back_freed_memory
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.measuring.single_layer import SingleLayer
from distllm.engine.pipeline.measuring.stand_in_checkpoint import write_stand_in
from distllm.engine.pipeline.messages import LayerSample
from distllm.engine.pipeline.peer.stage import engine_config
from distllm.engine.pipeline.placement.measuring import MEASURED_ROWS, ComputeTimes, measure_layers
from distllm.engine.served_model import prepare_model

_CHUNK_TOKENS = 256
_CONTEXT_TOKENS = 256
"""Tokens that a decoding row attends to."""


def time_layer(sample: LayerSample, here: EngineConfig, directory: Path, budget_s: float = 2.0) -> ComputeTimes:
    """Loads the layer first, which takes as long as it takes. `directory` is for a file of passing weights.

    Raises CheckpointError, OutOfMemory, ValueError or OSError.
    """
    stage = sample.stage
    longest = max(1, stage.max_model_len - 1)
    chunk_tokens = max(min(_CHUNK_TOKENS, longest), MEASURED_ROWS[-1] + 1)
    with tempfile.TemporaryDirectory(dir=directory) as folder, giving_back_freed_memory():
        write_stand_in(sample, Path(folder))
        engine = engine_config(stage, replace(here, model=folder))
        layers = LayerRange(stage.begin, stage.end, stage.num_layers)
        served = prepare_model(engine, lambda *_: None, layers=layers)
        timed = SingleLayer(served, min(_CONTEXT_TOKENS, longest), MEASURED_ROWS[-1], chunk_tokens)
        return measure_layers(timed.run_layer, timed.run_head, chunk_tokens, budget_s)
