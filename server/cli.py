"""The `distllm` command: reads flags, calls one function a subcommand. Every setting has a flag of its name."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from distllm import __version__
from distllm.clients import InvalidCallError
from distllm.server.commands import chat, cluster, complete, convert, evaluate, peer, plan, quantize, serve, token
from distllm.server.config import InvalidSettings

_DESCRIPTION = """\
The OpenAI-compatible inference server for whatever hardware you have.

  distllm serve                      serve the embedded model at http://127.0.0.1:8000
  distllm serve ./my-checkpoint      serve a Hugging Face checkpoint from a directory
  distllm serve org/name             the same from the hub
  distllm plan ./my-checkpoint       what fits in memory, before loading anything
  distllm quantize org/name ./out    write a checkpoint with INT8 or INT4 weights
  distllm convert org/name ./out     write one file a rank, which starts without slicing
  distllm eval a --against b         perplexity, and how far two models' predictions are apart
  distllm token                      let another machine join the cluster
  distllm peer --join HOST:5555      serve a part of that cluster's model
  distllm cluster plan               which peers serve which layers, and how fast that should be
  distllm chat                       talk to a running server in the terminal
  distllm complete "Once upon"       stream one completion from a running server
"""

_COMMANDS = (serve, plan, quantize, convert, evaluate, token, peer, cluster, chat, complete)
_BROKEN_PIPE_STATUS = 141  # as a shell reports a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0 done, 1 failed, 2 called wrongly."""
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
    except (InvalidSettings, InvalidCallError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()
        return _BROKEN_PIPE_STATUS
    except OSError as error:
        _discard_output()
        return _complain(str(error), 1)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distllm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"distllm {__version__}")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher gives it
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _discard_output() -> None:
    """Where stdout cannot be written, nor can what is buffered: let the interpreter's last flush find no fault."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _complain(message: str, status: int) -> int:
    print(f"distllm: {message}", file=sys.stderr)  # noqa: T201
    return status
