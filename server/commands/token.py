"""`distllm token`: let another machine join the cluster."""

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  distllm token                                     a token, and the command to run on the other machine
  distllm token --lifetime 15m                      one that is valid for a quarter of an hour
  distllm token --coordinator gpu-1.example:5555    where the other machine finds the coordinator

Run it where the coordinator runs, with the same --state. Each token lets one machine join, once.
"""


def add(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="let another machine join the cluster",
        description="Print a one-time join token, and the command with which another machine joins.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    token.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="the coordinator's state directory (default: ~/.local/state/distllm/cluster)",
    )
    token.add_argument(
        "--lifetime", default="1h", metavar="TIME", help="such as 90s, 15m, 1h or 2d (default: %(default)s)"
    )
    token.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address for the other machine (default: where it listens)"
    )
    token.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.join_token import print_join_token

    return print_join_token(arguments.state, arguments.lifetime, arguments.coordinator)
