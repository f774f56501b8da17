"""Measures what a codec of activations takes on this machine."""

import time
from collections.abc import Callable

import torch

from distllm.engine.pipeline.wire.activation_codec import CODECS, bytes_per_token
from distllm.engine.pipeline.wire.codec_choice import CodecCost
from distllm.engine.pipeline.wire.codec_names import CodecName

_NUM_REPEATS = 5


def measure_codec(
    name: CodecName, num_rows: int, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> CodecCost:
    """At `num_rows` tokens a step, from and to `device`, with the copies over host memory. Takes milliseconds."""
    codec = CODECS[name]
    rows = torch.randn(num_rows, hidden_size, device=device).to(dtype)
    sent = [tensor.cpu() for tensor in codec.encode(rows)]
    return CodecCost(
        bytes_per_token=bytes_per_token(name, hidden_size, dtype),
        encode_rows_per_s=num_rows / _least_seconds(lambda: [tensor.cpu() for tensor in codec.encode(rows)]),
        decode_rows_per_s=num_rows
        / _least_seconds(lambda: codec.decode([tensor.to(device) for tensor in sent], dtype)[-1, -1].item()),
    )


def _least_seconds(run: Callable[[], object]) -> float:
    """Of a run that ends once its result is in host memory, the first of which only warms up."""
    seconds: list[float] = []
    for _ in range(1 + _NUM_REPEATS):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return max(min(seconds[1:]), 1e-9)
