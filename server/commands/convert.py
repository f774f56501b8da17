"""`distllm convert`: write a checkpoint for several ranks."""

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  distllm convert ./my-checkpoint ./two --tensor-parallel-size 2    one file for each of two ranks
  distllm serve ./two                                               starts two ranks, each with its file
  distllm convert ./two ./back --tensor-parallel-size 1             the Hugging Face checkpoint again, bit for bit
  distllm convert --verify ./two                                    compare every file with its SHA-256

IN is a directory with .safetensors, .bin or .pt weights, one such file beside its config.json, or a hub name. OUT
must not exist, or be empty; it appears when all of it is written.
"""


def add(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint for several ranks",
        description="Write one safetensors file a rank with DeepSpeed's descriptor, or a single checkpoint again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("source", metavar="IN", help="checkpoint directory, file of weights, or hub name")
    convert.add_argument("out", nargs="?", type=Path, metavar="OUT", help="directory to write")
    convert.add_argument(
        "--tensor-parallel-size", type=int, metavar="N", help="ranks to write for; 1: one checkpoint"
    )
    convert.add_argument("--verify", action="store_true", help="write nothing: compare IN with its manifest")
    convert.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.conversion import convert, verify_converted

    if arguments.verify:
        return verify_converted(Path(arguments.source))
    return convert(arguments.source, arguments.out, arguments.tensor_parallel_size)
