"""`distllm peer`: serve a part of a cluster's model."""

import argparse
from pathlib import Path
from typing import Any, get_args

from distllm.engine.quantization.config import QuantizationWish

_EPILOG = """\
examples:
  distllm peer --join gpu-1:5555 --token T                  join, have layers of the model sent, and serve them
  distllm peer --join gpu-1:5555                            again, once this machine has joined
  distllm peer --join gpu-1:5555 --model ./my-checkpoint    with a copy of the model that is here already
  distllm peer --join gpu-1:5555 --quantization int8        with half the memory for its layers
  distllm peer --join gpu-1:5555 --tensor-parallel-size 2   its layers are computed by two processes, or GPUs

A token is printed by `distllm token` where the coordinator runs.
"""


def add(commands: Any) -> None:
    peer = commands.add_parser(
        "peer",
        help="serve a part of a cluster's model",
        description="Join a cluster, and serve the layers that its coordinator gives to this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    peer.add_argument("--join", required=True, metavar="HOST:PORT", help="address of the coordinator")
    peer.add_argument("--token", help="one-time token, to join for the first time")
    peer.add_argument("--model", help="copy of the model, a directory or hub name (default: its weights are sent)")
    peer.add_argument("--name", help="what this peer is called (default: the name of this machine)")
    peer.add_argument("--host", help="address under which other peers reach this machine (default: found out)")
    peer.add_argument("--port", type=int, default=0, help="port for other peers (default: any free one)")
    peer.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="address to listen on where others reach another, as in a container (default: --host and --port)",
    )
    peer.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="folder of this peer's certificate (default: ~/.local/state/distllm/peer)",
    )
    peer.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of weights that were sent (default: ~/.cache/distllm/weights)",
    )
    peer.add_argument(
        "--cache-limit",
        metavar="SIZE",
        help="such as 50GiB: models there that were not served for longest make way for others (default: none do)",
    )
    peer.add_argument(
        "--allow-plaintext",
        action="store_true",
        help="join a coordinator without encryption beyond this machine",
    )
    peer.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where layers run")
    peer.add_argument(
        "--num-threads", type=int, metavar="N", help="threads of the CPU kernels (default: one a core)"
    )
    peer.add_argument("--kv-cache-memory", type=float, metavar="GIB", help="GiB for the KV cache")
    peer.add_argument(
        "--quantization",
        choices=get_args(QuantizationWish),
        help="how this peer's layers are quantized while they load (default: as the coordinator says)",
    )
    peer.add_argument(
        "--tensor-parallel-size",
        default="1",
        metavar="N",
        help="processes of this machine that share each of its stages; auto: one a CUDA device (default: 1)",
    )
    peer.add_argument(
        "--rank-timeout-s",
        type=float,
        default=1.5,
        metavar="S",
        help="seconds one of these may keep the others waiting (default: 1.5)",
    )
    peer.add_argument(
        "--offload",
        choices=("none", "cpu", "disk"),
        default="none",
        help="where layers wait that do not fit on the device: host memory (with cuda) or a file",
    )
    peer.add_argument(
        "--offload-dir", type=Path, metavar="DIR", help="folder on a disk for them (default: /var/tmp)"
    )
    peer.add_argument(
        "--weights-memory",
        type=float,
        metavar="GIB",
        help="GiB on the device for weights when offloading (default: what is free beside the KV cache)",
    )
    peer.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    peer.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.server.peer import run_peer

    return run_peer(arguments)
