"""Our own processes import nothing from a user's working directory."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from distllm.engine.python_command import python_command
from distllm.scheduler.spawn import ENGINE_COMMAND

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hostile_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds a queue.py that ends whoever imports it, and helper.py; PYTHONPATH is as before, from anywhere."""
    (tmp_path / "queue.py").write_text("raise SystemExit('queue.py of the working directory was imported')\n")
    (tmp_path / "helper.py").write_text("")
    paths = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "src").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


def test_the_engine_starts_in_a_directory_with_a_queue_of_the_users(hostile_directory: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        ended = subprocess.run(
            [*ENGINE_COMMAND, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            cwd=hostile_directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_pythonpath_names_is_found_and_what_only_lies_there_is_not(
    hostile_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_well() -> bool:
        command = python_command("helper")
        return subprocess.run(command, cwd=hostile_directory, capture_output=True, timeout=60).returncode == 0

    assert not ends_well()
    monkeypatch.setenv("PYTHONPATH", str(hostile_directory))
    assert ends_well()


def test_no_other_file_of_ours_starts_a_python() -> None:
    sources = [
        file
        for folder in ("engine", "scheduler", "server", "src/distllm")
        for file in (ROOT / folder).rglob("*.py")
    ]
    assert [file.name for file in sources if "sys.executable" in file.read_text()] == ["python_command.py"]
