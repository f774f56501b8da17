"""`distllm cluster`: what a cluster's coordinator knows and plans."""

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  distllm cluster plan                      the best plan for the peers that are here, and what losses would change
  distllm cluster plan --without gpu-2-5b   and without this peer, which may have no stage
  distllm cluster plan --another gpu-1-0a   and with one more peer that is just like this one
  distllm cluster plan --json               the same for programs, in seconds and bytes

Run it where the coordinator runs, with the same --state. Plans follow from what peers measured of themselves and of
the links between them. Exit status: 0 if the model fits on the peers, 1 if not.
"""


def add(commands: Any) -> None:
    cluster = commands.add_parser("cluster", help="say what a cluster's coordinator knows and plans")
    parts = cluster.add_subparsers(required=True, metavar="COMMAND", title="commands")
    plan = parts.add_parser(
        "plan",
        help="say which peers should serve which layers, and why",
        description="Say which peers should serve which layers, how fast that would be, and what bounds it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="the coordinator's state directory (default: ~/.local/state/distllm/cluster)",
    )
    plan.add_argument("--without", metavar="PEER", action="append", default=[], help="what if this peer were lost")
    plan.add_argument("--another", metavar="PEER", action="append", default=[], help="what if its like joined")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.cluster_plan import print_cluster_plan

    return print_cluster_plan(arguments.state, arguments.without, arguments.another, as_json=arguments.json)
