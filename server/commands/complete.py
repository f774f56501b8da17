"""`distllm complete`: stream one completion from a running server."""

import argparse
from typing import Any

from distllm.server.commands.client_flags import add_client_flags, client_of, given_options

_EPILOG = """\
examples:
  distllm complete "Once upon a time" --max-tokens 64
  distllm complete < prompt.txt > answer.txt        the whole input is the prompt
  distllm complete "2 + 2 =" --temperature 0 --url http://127.0.0.1:9000

Ctrl-C stops it. DISTLLM_API_KEY holds the key where --api-key is not given.
"""


def add(commands: Any) -> None:
    complete = commands.add_parser(
        "complete",
        help="stream one completion",
        description="Stream the completion of a prompt.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complete.add_argument("prompt", nargs="?", help="text to continue; none: standard input")
    add_client_flags(complete)
    complete.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.clients.complete import run_complete

    with client_of(arguments) as client:
        return run_complete(client, arguments.prompt, options=given_options(arguments))
