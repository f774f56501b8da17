"""`distllm eval`: measure perplexity, and the distance from another model."""

import argparse
from pathlib import Path
from typing import Any

from distllm.server.commands.setting_flags import add_settings, read_settings
from distllm.server.config import sections

_EPILOG = """\
examples:
  distllm eval ./my-checkpoint --quantization int4 --against ./my-checkpoint
  distllm eval ./quantized --against ./my-checkpoint --text novel.txt --window 1024
  distllm eval ./my-checkpoint --codec fp8 --num-stages 4

Settings are those of the first model; the other is taken as it is stored. Without --text, stories that the embedded
model never saw are read. Both models must share one vocabulary, and are in memory at once, each over as many ranks
as --tensor-parallel-size says. With --codec the other model is the same one over the same stages, whose activations
go from one to the next as they are: what network.compression of a cluster costs.
"""


def add(commands: Any) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="measure perplexity, and the distance from another model",
        description="Print perplexity, and Kullback-Leibler divergence and top-1 agreement with another model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(evaluation, {name: sections()[name] for name in ("model", "engine")})
    evaluation.add_argument("--against", metavar="PATH_OR_HUB_ID", help="the model to compare with")
    evaluation.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to predict; none: stories")
    evaluation.add_argument("--window", type=int, default=512, help="tokens seen at once (default: %(default)s)")
    evaluation.add_argument("--codec", choices=("fp8", "int8"), help="send activations between stages in it")
    evaluation.add_argument("--num-stages", type=int, help="stages of the model with --codec (default: 2)")
    evaluation.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.evaluation import print_evaluation, stages_of

    settings = read_settings(arguments, ("model", "engine"))
    stages = stages_of(arguments.codec, arguments.num_stages)
    return print_evaluation(settings, arguments.against, arguments.text, arguments.window, stages)
