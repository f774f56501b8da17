"""`distllm serve`: serve a model over HTTP."""

import argparse
from typing import Any

from distllm.server.commands.setting_flags import add_settings, read_settings
from distllm.server.config import sections

_EPILOG = """\
Each flag may also be set as an environment variable (--max-num-seqs: DISTLLM_MAX_NUM_SEQS) or in a YAML file
given by --config or DISTLLM_CONFIG (scheduler: {max_num_seqs: 8}). Flags win over variables, they over the file.

A hub name is fetched once and kept: HF_HOME says where, HF_TOKEN lets private and gated models in, and
HF_HUB_OFFLINE=1 forbids fetching.
"""


def add(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model over OpenAI's HTTP API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(serve, sections())
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.launch import serve

    return serve(read_settings(arguments))
