"""`distllm quantize`: write a quantized checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from distllm.server.commands.setting_flags import add_settings, read_settings
from distllm.server.config import sections

_EPILOG = """\
examples:
  distllm quantize ./my-checkpoint ./smaller --quantization int4
  distllm quantize org/name ./smaller --quantization int8 --dynamic-activations

The output is in compressed-tensors' format, which other servers read as well. Embeddings and output head stay as
they are.
"""


def add(commands: Any) -> None:
    quantize = commands.add_parser(
        "quantize",
        help="write a quantized checkpoint",
        description="Quantize a checkpoint once, tensor by tensor, into another that `distllm serve` starts from.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(quantize, {"model": sections()["model"]})
    quantize.add_argument("out", type=Path, metavar="OUT", help="directory to write, which must not exist")
    quantize.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.quantizing import quantize

    return quantize(read_settings(arguments, ("model",)), arguments.out)
