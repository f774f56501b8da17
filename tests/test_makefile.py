"""The Makefile's targets, with stand-ins for what they start."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(target: str, venv: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = ["make", "--silent", target, f"VENV={venv}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("target", "program", "offline"), [("serve", "distllm", ""), ("test", "python", "1")])
def test_the_hub_may_be_reached_by_a_server_and_not_by_the_tests(
    tmp_path: Path, target: str, program: str, offline: str
) -> None:
    script(tmp_path / "bin" / program, 'echo "offline: $HF_HUB_OFFLINE"')
    (tmp_path / ".installed").touch()
    assert make(target, tmp_path).stdout == f"offline: {offline}\n"


def test_a_python_without_venv_is_said_with_the_remedy(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "python3", "exit 1")
    ended = make("setup", tmp_path / "venv", path=tmp_path / "bin")
    assert ended.returncode != 0
    assert "apt install python3-venv" in ended.stderr
    assert not (tmp_path / "venv").exists()
