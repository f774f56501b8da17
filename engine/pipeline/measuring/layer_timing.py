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
from distllm.engine.pipeline.placement.measuring import ComputeTimes, measure_layers
from distllm.engine.pipeline.ranks.stage_process import StageProcess
from distllm.engine.served_model import prepare_model


def time_layer(sample: LayerSample, here: EngineConfig, directory: Path, budget_s: float = 2.0) -> ComputeTimes:
    """Loads the layer first, which takes as long as it takes. `directory` is for a file of passing weights.

    Raises CheckpointError, OutOfMemory, ValueError or OSError.
    """
    stage = sample.stage
    layers = LayerRange(stage.begin, stage.end, stage.num_layers)
    with tempfile.TemporaryDirectory(dir=directory) as folder, giving_back_freed_memory():
        write_stand_in(sample, Path(folder))
        engine = engine_config(stage, replace(here, model=folder))
        if engine.tensor_parallel_size != 1:
            return _time_over_ranks(engine, layers, budget_s)
        timed = SingleLayer(prepare_model(engine, lambda *_: None, layers=layers))
        return measure_layers(timed.run_layer, timed.run_head, timed.chunk_tokens, budget_s)


def _time_over_ranks(config: EngineConfig, layers: LayerRange, budget_s: float) -> ComputeTimes:
    process = StageProcess(config, layers, lambda *_: None, lambda _: None)
    try:
        return process.time_layer(budget_s)
    finally:
        process.close()
