"""Runs a program of the engine that answers in JSON, so that its caller need not import torch."""

import subprocess
import sys
from typing import TypeVar

import msgspec

Answer = TypeVar("Answer")


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why nothing was done, in one line."""

    reason: str


def ask(module: str, request: msgspec.Struct, answer: type[Answer]) -> Answer | Refusal:
    """Run `module` with `request` as its input and wait for what it answers."""
    run = subprocess.run(
        [sys.executable, "-m", module], input=msgspec.json.encode(request), stdout=subprocess.PIPE, check=False
    )
    if run.returncode:
        return Refusal(f"{module} ended with status {run.returncode}")
    return msgspec.json.decode(run.stdout, type=answer | Refusal)
