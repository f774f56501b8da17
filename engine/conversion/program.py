"""`python -m distllm.engine.conversion.program`: converts what a ConversionRequest on stdin asks for.

A program of its own, so that `distllm convert` need not import torch; it ends with whoever started it.
"""

import ctypes
import signal
import sys

from tqdm import tqdm

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.child_program import answer
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.conversion.report import ConversionRequest, Converted
from distllm.engine.distributed.division import CannotDivide

_PR_SET_PDEATHSIG = 1


def convert(request: ConversionRequest) -> Converted:
    """Convert, with a bar on a terminal."""
    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}", disable=None) as bar:
        path = convert_checkpoint_to_deepspeed(
            request.checkpoint_path,
            request.output_path,
            request.tensor_parallel_size,
            lambda done: bar.update(round(100 * done) - bar.n),
        )
    return Converted(str(path))


def end_when_told() -> None:
    """End on SIGTERM as on an exception, so that nothing half-made is left; and so when the parent has ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    end_when_told()
    answer(ConversionRequest, convert, (CheckpointError, CannotDivide, OSError))
