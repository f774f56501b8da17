"""The commands as a user types them: help that teaches, errors in one line, exit statuses to trust."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distllm.engine.embedded import checkpoint_path
from distllm.server import cli
from distllm.server.commands.setting_flags import add_settings, flags_of, read_settings
from distllm.server.config import Settings, sections


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distllm.server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=120)


def test_help_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for command in ("distllm serve", "distllm plan", "distllm chat", "distllm complete"):
        assert command in shown


def test_help_of_serve_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    shown = capsys.readouterr().out
    for flag in (
        "--port",
        "--api-key",
        "--max-model-len",
        "--max-num-seqs",
        "--kv-cache-memory",
        "--no-prefix-caching",
    ):
        assert flag in shown
    assert "(default: 8000)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "x"], "setting server.port"),
        (["serve", "--max-num-seqs", "0"], "setting scheduler.max_num_seqs"),
        (["serve", "--config", "/no/such/file"], "config file /no/such/file cannot be read"),
        (["plan", "--context", "0"], "--context must be at least 1"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/directory", "there is no directory /no/such/directory"),
        ("someone/something", "is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it"),
    ],
)
def test_a_model_that_cannot_be_found_is_one_line_and_status_1(
    model: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = run("serve", model, "--port", "0")
    assert ended.returncode == 1
    assert message in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = run("serve", "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"distllm: cannot listen on 127.0.0.1:{port}: Address already in use; see --host and --port\n"
    )


def test_plan_counts_requests_before_loading(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--kv-cache-memory", "0.5", "--context", "1024"]) == 0
    shown = capsys.readouterr().out
    config = json.loads((checkpoint_path() / "config.json").read_text())
    token_bytes = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
    assert f"{token_bytes:,} bytes a token" in shown
    assert "64 at once at 1,024 tokens each" in shown
    assert cli.main(["plan", "--kv-cache-memory", "0.05", "--context", "1024"]) == 0
    num_blocks = int(0.05 * 2**30) // (16 * token_bytes)
    assert f"{num_blocks // 64:,} at once at 1,024 tokens each" in capsys.readouterr().out
    assert "fits: start it with `distllm serve --kv-cache-memory 0.5`" in shown


def test_plan_says_what_to_change_when_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--kv-cache-memory", "0.0001"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit: the KV cache of one sequence" in shown
    assert "lower --max-model-len to 32 or raise --kv-cache-memory" in shown
    assert "0.00" not in shown


def test_plan_names_the_command_that_serves_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a b").symlink_to(checkpoint_path())
    assert cli.main(["plan", str(tmp_path / "a b")]) == 0
    assert f"start it with `distllm serve '{tmp_path / 'a b'}'`" in capsys.readouterr().out


def test_plan_names_the_flags_that_make_it_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--offload", "disk", "--offload-dir", str(tmp_path), "--weights-memory", "0.005"]
    assert cli.main(["plan", *flags, "--kv-cache-memory", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert f"stream from {tmp_path}" in shown
    assert "s at least at" in shown
    assert f"--offload disk --offload-dir {tmp_path} --weights-memory 0.005`" in shown


def test_plan_repeats_every_setting_that_is_not_its_default() -> None:
    given = [
        *("--dtype", "float32", "--max-model-len", "256", "--chat-template", "a b.jinja", "--no-symmetric"),
        *("--max-num-seqs", "3", "--no-prefix-caching", "--kv-cache-dtype", "int8", "--weights-memory", "0.125"),
        *(
            "--offload",
            "disk",
            "--tensor-parallel-size",
            "auto",
            "--rank-timeout-s",
            "9.0",
            "--attention-backend",
            "reference",
        ),
    ]
    parser = argparse.ArgumentParser()
    add_settings(parser, sections())
    settings = read_settings(parser.parse_args(["here", "--quantization", "int4", *given]))
    words = [word for name in ("model", "scheduler", "engine") for word in flags_of(getattr(settings, name))]
    assert read_settings(parser.parse_args(words)).model_dump() == settings.model_dump()
    assert len(words) == len(given) + 3
    assert flags_of(Settings().engine) == []


def test_plan_refuses_an_architecture_that_cannot_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint_path(), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "mamba", "num_hidden_layers": 2}))
    assert cli.main(["plan", str(tmp_path / "m")]) == 1
    assert "MambaForCausalLM cannot be served" in capsys.readouterr().err


def test_serve_refuses_a_pool_too_small_for_one_request_once_and_names_the_flag() -> None:
    ended = run("serve", "--port", "0", "--kv-cache-memory", "0.0001")
    assert ended.returncode == 1
    assert "raise --kv-cache-memory" in ended.stderr.splitlines()[-1]
    assert ended.stderr.count("raise --kv-cache-memory") == 1


@pytest.mark.parametrize("host", ["nosuch.invalid", "a" * 70])
def test_a_host_that_is_none_is_one_line_and_status_1(host: str) -> None:
    ended = run("serve", "--port", "0", "--host", host)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"distllm: cannot listen on {host}:0: ")
    assert ended.stderr.endswith("; see --host and --port\n")
    assert "Unknown error" not in ended.stderr


@pytest.mark.parametrize("command", [("chat",), ("complete", "x")])
def test_help_of_the_client_commands_teaches_by_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command[0], "--help"])
    shown = capsys.readouterr().out
    assert f"distllm {command[0]}" in shown.partition("examples:")[2]
    assert "DISTLLM_API_KEY" in shown
    assert "Ctrl-C" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["chat", "--url", "127.0.0.1:8000"], 2, "write it as http://host:port"),
        (["complete", "x", "--api-key", "schlüssel"], 2, "printable ASCII"),
    ],
)
def test_a_client_command_called_wrongly_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_full_disk_under_the_output_is_one_line_and_status_1() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "distllm.server", "plan"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr == "distllm: [Errno 28] No space left on device\n"


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        command = [sys.executable, "-m", "distllm.server", "plan"]
        ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == 141
    assert ended.stderr == ""


def test_complete_without_a_server_says_how_to_start_one() -> None:
    ended = run("complete", "Once", "--url", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert "distllm serve" in ended.stderr


def test_the_command_of_the_package_is_the_module(tmp_path: Path) -> None:
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith("distllm 0.")
