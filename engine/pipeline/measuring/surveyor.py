"""A peer's part in the survey: times a layer when the coordinator asks, once for each model, and codecs."""

import asyncio
import hashlib
import logging
from concurrent.futures import Executor
from pathlib import Path

import msgspec
import torch

from distllm.engine.config import EngineConfig
from distllm.engine.durable import write_private
from distllm.engine.pipeline.measuring.layer_timing import time_layer
from distllm.engine.pipeline.messages import LayerSample, Measured, MeasureFailed
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pipeline.wire.activation_codec import CODECS
from distllm.engine.pipeline.wire.codec_choice import CodecCost
from distllm.engine.pipeline.wire.codec_cost import measure_codec
from distllm.engine.pipeline.wire.codec_names import CodecName

logger = logging.getLogger("distllm.pipeline")

_CODEC_ROWS = 32
_decode_times = msgspec.json.Decoder(ComputeTimes)


class Surveyor:
    """`directory` keeps what was measured.

    Layers are timed in `loading`, where stages are loaded too: transformers can build one model at a time.
    """

    def __init__(self, here: EngineConfig, free_bytes: int, directory: Path, loading: Executor) -> None:
        self._here = here
        self._free_bytes = free_bytes
        self._directory = directory
        self._loading = loading

    async def measure(self, sample: LayerSample) -> Measured | MeasureFailed:
        """What a layer takes, or took before."""
        loop = asyncio.get_running_loop()
        try:
            times = await loop.run_in_executor(self._loading, self._timed, sample)
            codecs = await loop.run_in_executor(self._loading, _codec_costs, sample)
        except Exception as error:  # whatever a model chokes on; it may be served all the same
            logger.warning("a layer could not be timed", exc_info=error)
            return MeasureFailed(reason=str(error) or type(error).__name__)
        return Measured(times=times, free_bytes=self._free_bytes, codecs=codecs)

    def _timed(self, sample: LayerSample) -> ComputeTimes:
        known = self._directory / f"{self._key(sample)}.json"
        try:
            return _decode_times.decode(known.read_bytes())
        except (OSError, msgspec.DecodeError):
            pass
        self._directory.mkdir(parents=True, exist_ok=True)
        times = time_layer(sample, self._here, self._directory)
        write_private(known, msgspec.json.encode(times))
        return times

    def _key(self, sample: LayerSample) -> str:
        """Other layers, devices, threads and ranks take other times."""
        here = (
            self._here.device,
            self._here.num_threads,
            self._here.attention_backend,
            self._here.tensor_parallel_size,
        )
        return hashlib.sha256(msgspec.msgpack.encode((sample, here))).hexdigest()[:32]


def _codec_costs(sample: LayerSample) -> dict[CodecName, CodecCost]:
    """Of activations in host memory, as stages send them."""
    dtype: torch.dtype = getattr(torch, sample.stage.dtype)
    host = torch.device("cpu")
    return {name: measure_codec(name, _CODEC_ROWS, sample.width, dtype, host) for name in CODECS}
