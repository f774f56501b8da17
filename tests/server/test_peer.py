"""What `distllm peer` makes of its flags."""

import argparse
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.security.state_dir import ClusterStateError
from distllm.server import cli
from distllm.server.commands import peer
from distllm.server.peer import engine_config
from distllm.server.peer_lock import held_alone

JOIN = ("--join", "gpu-1:5555")


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peer.add(parser.add_subparsers())
    return parser.parse_args(["peer", *JOIN, *words])


def test_without_flags_stages_are_computed_in_one_process_and_stay_in_memory() -> None:
    assert engine_config(parse()) == EngineConfig(model="")
    assert parse().quantization is None


def test_flags_say_how_stages_are_computed_and_kept() -> None:
    words = "--tensor-parallel-size 2 --rank-timeout-s 3 --offload disk --offload-dir /fast --weights-memory 0.5"
    assert engine_config(parse(*words.split(), "--device", "cpu")) == EngineConfig(
        model="",
        device="cpu",
        tensor_parallel_size=2,
        rank_timeout_s=3.0,
        offload="disk",
        offload_dir="/fast",
        weights_bytes=1 << 29,
    )


def test_auto_is_one_rank_a_device() -> None:
    assert engine_config(parse("--tensor-parallel-size", "auto")).tensor_parallel_size is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tensor-parallel-size 0", "--tensor-parallel-size must be auto or a number from 1, not '0'"),
        ("--tensor-parallel-size two", "--tensor-parallel-size must be auto or a number from 1, not 'two'"),
        ("--weights-memory 1", "--weights-memory says how to offload: give --offload disk or cpu as well"),
        ("--offload-dir /fast", "--offload-dir says how to offload"),
        ("--offload cpu --device cpu", "use --offload disk"),
        ("--offload disk --weights-memory 0", "--weights-memory must be more than 0, not 0"),
        ("--kv-cache-memory -1", "--kv-cache-memory must be more than 0, not -1"),
    ],
)
def test_a_flag_that_cannot_be_is_one_line_and_status_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["peer", *JOIN, *words.split()]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_name_that_nobody_knows_is_told_with_its_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def know_nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", know_nobody)
    assert cli.main(["peer", *JOIN]) == 1
    assert (
        "--join: gpu-1 cannot be looked up: Name or service not known; is it mistyped?" in capsys.readouterr().err
    )


def test_two_peers_do_not_share_one_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held_alone(tmp_path):
        assert cli.main(["peer", "--join", "127.0.0.1:5555", "--state", str(tmp_path)]) == 1
    assert f"another peer runs here with --state {tmp_path}" in capsys.readouterr().err
    assert cli.main(["peer", "--join", "127.0.0.1:5555", "--state", str(tmp_path)]) == 1
    assert "holds no identity" in capsys.readouterr().err


def test_a_state_directory_is_held_by_the_program_that_a_peer_becomes(tmp_path: Path) -> None:
    become_another = (
        "import os, pathlib, sys\n"
        "from distllm.server.peer_lock import held_alone\n"
        "with held_alone(pathlib.Path(sys.argv[1])):\n"
        "    os.execvp('sh', ['sh', '-c', 'echo held; read line'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", become_another, tmp_path], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ClusterStateError), held_alone(tmp_path):
            pass
        other.communicate(b"\n")
    with held_alone(tmp_path):
        pass
