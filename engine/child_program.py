"""Programs of the engine that answer in JSON, so that whoever asks need not import torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

from distllm.engine.python_command import python_command

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why nothing was done, in one line."""

    reason: str


def ask(
    module: str,
    question: object,
    kind: type[Answer],
    *,
    shows_progress: bool = True,
    timeout_s: float | None = None,
) -> Answer | Refusal:
    """What `module` answers to `question`, of one `kind`. It is ended after `timeout_s`.

    One that `shows_progress` writes to this process's stderr; else its last line there says why it failed.
    """
    try:
        run = subprocess.run(
            python_command(module),
            input=msgspec.json.encode(question),
            stdout=subprocess.PIPE,
            stderr=None if shows_progress else subprocess.PIPE,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Refusal(f"{module} has not answered within {timeout_s:g} s")
    if run.returncode:
        last_line = ((run.stderr or b"").decode(errors="replace").strip().splitlines() or [""])[-1]
        return Refusal(f"{module} ended with status {run.returncode}" + (f": {last_line}" if last_line else ""))
    return msgspec.json.decode(run.stdout, type=kind | Refusal)


def answer(kind: type[Question], work: Callable[[Question], object], refused: tuple[type[Exception], ...]) -> None:
    """The other side of `ask`: do the work that stdin asks for. An error of the `refused` kinds is a Refusal.

    What libraries print meanwhile goes to stderr.
    """
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        result = work(msgspec.json.decode(sys.stdin.buffer.read(), type=kind))
    except refused as error:
        result = Refusal(str(error))
    with os.fdopen(stdout, "wb") as file:
        file.write(msgspec.json.encode(result))
