"""An output is there whole or not at all, whenever and however its writer ends."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.conversion.output import check_room, whole_or_nothing
from tests.engine.conversion.conftest import Converted

Checkpoints = Callable[[str], Path]

_KILLED_HALFWAY = """
import os, signal, sys
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed

def on_progress(done):
    if done > 0.5:
        os.kill(os.getpid(), {signal})

{before}
convert_checkpoint_to_deepspeed(sys.argv[1], sys.argv[2], 2, on_progress)
"""


def convert_and_die(source: Path, out: Path, number: signal.Signals, before: str = "") -> int:
    code = _KILLED_HALFWAY.format(signal=int(number), before=before)
    return subprocess.run([sys.executable, "-c", code, source, out], check=False, timeout=120).returncode


def test_a_conversion_that_is_killed_leaves_no_output_and_the_next_cleans_up(
    checkpoint: Checkpoints, converted: Converted, tmp_path: Path
) -> None:
    out = tmp_path / "place" / "out"
    assert convert_and_die(checkpoint("llama"), out, signal.SIGKILL) == -signal.SIGKILL
    assert not out.exists()
    (left,) = out.parent.iterdir()
    assert left.name.startswith(".out.partial-")
    assert not (left / "manifest.json").exists()
    descriptor = convert_checkpoint_to_deepspeed(checkpoint("llama"), out, 2)
    assert list(out.parent.iterdir()) == [out]
    for name in json.loads(descriptor.read_text())["checkpoints"]:
        assert (out / name).read_bytes() == (converted("llama", 2) / name).read_bytes()


def test_the_command_that_is_told_to_end_leaves_nothing(checkpoint: Checkpoints, tmp_path: Path) -> None:
    told = "from distllm.engine.conversion.program import end_when_told; end_when_told()"
    assert convert_and_die(checkpoint("llama"), tmp_path / "out", signal.SIGTERM, told) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_fault_leaves_nothing(checkpoint: Checkpoints, tmp_path: Path) -> None:
    def fail(done: float) -> None:
        if done > 0.5:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        convert_checkpoint_to_deepspeed(checkpoint("llama"), tmp_path / "out", 2, fail)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_output_do_not_touch_each_other(tmp_path: Path) -> None:
    with ExitStack() as slower:
        slow = slower.enter_context(whole_or_nothing(tmp_path / "out"))
        with whole_or_nothing(tmp_path / "out") as fast:
            (fast / "fast").touch()
        assert slow.is_dir()
        with pytest.raises(FileExistsError, match="exists and is not an empty directory"):
            slower.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "fast"]


def test_an_output_that_is_there_is_refused_before_anything_is_written(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="exists and is not an empty directory; name another"):
        convert_checkpoint_to_deepspeed(checkpoint("llama"), tmp_path / "out", 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_empty_directory_is_taken(checkpoint: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert convert_checkpoint_to_deepspeed(checkpoint("llama"), tmp_path / "out", 2).is_file()


def test_the_directory_gets_the_rights_of_any_other(tmp_path: Path) -> None:
    with whole_or_nothing(tmp_path / "out"):
        pass
    (tmp_path / "other").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_disk_without_room_is_refused_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"needs [\d,]+ GiB, and its disk has [\d,.]+ .iB free"):
        check_room(tmp_path / "a" / "b", 1 << 60)


def test_the_mount_of_a_disk_is_refused_at_once() -> None:
    with pytest.raises(FileExistsError, match="is where a disk is mounted; name a directory in it"):  # noqa: SIM117
        with whole_or_nothing(Path("/proc")):
            os.abort()


def test_a_file_that_grows_too_large_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    source, limits = checkpoint("llama"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*tp_00_of_02\.safetensors"):
            convert_checkpoint_to_deepspeed(source, tmp_path / "ranks", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "ranks").exists()
