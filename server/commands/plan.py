"""`distllm plan`: say what a checkpoint needs before loading it."""

import argparse
from typing import Any

from distllm.server.commands.setting_flags import add_settings, read_settings
from distllm.server.config import sections

_EPILOG = """\
examples:
  distllm plan ./my-checkpoint                       the usual context lengths, in the memory that is free now
  distllm plan org/name --context 4096               how many requests of 4,096 tokens run at once
  distllm plan ./my-checkpoint --kv-cache-memory 8   with 8 GiB of KV cache
  distllm plan ./my-checkpoint --kernels             what runs each module, and why nothing faster

Exit status: 0 if it can be served and fits, 1 if not. Names and shapes of the weights are checked as serve does;
their contents and the tokenizer by serve alone.
"""

_SECTIONS = ("model", "scheduler", "engine")


def add(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="say what a checkpoint needs before loading it",
        description="Say how much memory a checkpoint takes and how many requests fit beside it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(plan, {name: sections()[name] for name in _SECTIONS})
    plan.add_argument(
        "--context", type=int, metavar="TOKENS", help="count the requests that fit at this many tokens each"
    )
    plan.add_argument("--kernels", action="store_true", help="print what runs each module, and why nothing faster")
    plan.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.memory_report import print_plan

    return print_plan(read_settings(arguments, _SECTIONS), arguments.context, arguments.kernels)
