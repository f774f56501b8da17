"""The README's commands and programs, run as they stand but for the server's address."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distllm.server import cli
from distllm.server.config import fields

if TYPE_CHECKING:
    from tests.conftest import RunningServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """Lines that start a program, continued ones joined, comments cut off."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith(program)]


@pytest.mark.parametrize("command", commands("curl"))
def test_a_request_is_answered(command: str, embedded_server: "RunningServer") -> None:
    words = shlex.split(command.replace(ADDRESS, embedded_server.url))
    ended = subprocess.run([*words, "--fail", "--silent"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert '"choices"' in ended.stdout


@pytest.mark.parametrize("program", blocks("python"))
def test_a_program_runs(program: str, embedded_server: "RunningServer") -> None:
    program = program.replace(ADDRESS, embedded_server.url)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


@pytest.mark.parametrize("command", commands(".venv/bin/distllm"))
def test_a_command_has_these_arguments(command: str) -> None:
    assert callable(cli._parser().parse_args(shlex.split(command)[1:]).run)


@pytest.mark.parametrize("command", commands("make"))
def test_a_target_exists(command: str) -> None:
    words = [*shlex.split(command), "--dry-run", "VENV=/nonexistent"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def test_every_flag_and_variable_that_is_named_exists() -> None:
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([a-z-]+)", README)}
    variables = {name.lower() for name in re.findall(r"\bDISTLLM_([A-Z_]+)", README)}
    assert flags
    assert variables
    assert flags | variables <= fields().keys() | {"config"}
