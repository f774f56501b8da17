"""`distllm cluster`: what a cluster's coordinator knows and plans, and who is put out of it."""

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

_REMOVE_EPILOG = """\
examples:
  distllm cluster remove gpu-1-0a3f         its layers go to others, as when it is lost

Run it where the coordinator runs, with the same --state. A coordinator that runs obeys at once, and one that does
not when it is started. A machine that was put out can join again with a new token, under another name.
"""


def add(commands: Any) -> None:
    cluster = commands.add_parser("cluster", help="say what a coordinator knows and plans, or put a peer out")
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
    remove = parts.add_parser(
        "remove",
        help="put a peer out of the cluster",
        description="Put a peer out of the cluster, at once and for good: no machine answers it any more.",
        epilog=_REMOVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    remove.add_argument("peer", metavar="PEER", help="its whole name, as the cluster's page and the log say it")
    remove.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="the coordinator's state directory (default: ~/.local/state/distllm/cluster)",
    )
    remove.set_defaults(run=run_remove)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.cluster_plan import print_cluster_plan

    return print_cluster_plan(arguments.state, arguments.without, arguments.another, as_json=arguments.json)


def run_remove(arguments: argparse.Namespace) -> int:
    from distllm.server.cluster_removal import remove_peer

    return remove_peer(arguments.state, arguments.peer)
