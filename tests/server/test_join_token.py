"""`distllm token` as a user types it: what it prints can be copied and is taken, once."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.join_token import ExpiredToken, JoinToken, UsedToken
from distllm.engine.pipeline.security.token_store import TokenStore
from distllm.server import cli
from distllm.server.coordinator_address import CoordinatorAddress


def redeem(state_dir: Path, token: str, now: datetime) -> None:
    """As a coordinator does."""
    TokenStore(state_dir, ClusterAuthority.open(state_dir, now).fingerprint).redeem(token, now)


def test_the_line_to_copy_carries_a_token_that_is_taken_once(tmp_path: Path) -> None:
    arguments = ["token", "--state", str(tmp_path / "a"), "--coordinator", "gpu-1.example:7000"]
    ended = subprocess.run(
        [sys.executable, "-m", "distllm.server", *arguments], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    token, *_, line = ended.stdout.splitlines()
    assert line == f"  distllm peer --join gpu-1.example:7000 --token {token}"
    redeem(tmp_path / "a", token, datetime.now(UTC))
    with pytest.raises(UsedToken):
        redeem(tmp_path / "a", token, datetime.now(UTC))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["token", *arguments]) == 0
    return capsys.readouterr().out


def test_the_default_directory_is_in_the_users_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    token = printed(capsys).splitlines()[0]
    redeem(tmp_path / "distllm" / "cluster", token, datetime.now(UTC))


def test_without_a_home_the_remedy_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cli.main(["token"]) == 1
    assert "let XDG_STATE_HOME name one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lifetime", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1h", timedelta(hours=1)),
        ("30d", timedelta(days=30)),
    ],
)
def test_a_token_lives_as_long_as_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lifetime: str, expected: timedelta
) -> None:
    begin = datetime.now(UTC).replace(microsecond=0)
    shown = printed(capsys, "--state", str(tmp_path), "--lifetime", lifetime)
    token = JoinToken.parse(shown.splitlines()[0])
    assert begin + expected <= token.expires_at <= datetime.now(UTC) + expected
    assert f"Until {token.expires_at:%F %T} UTC" in shown
    with pytest.raises(ExpiredToken):
        redeem(tmp_path, token.text, token.expires_at)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("10.0.0.5", "10.0.0.5:5555"),
        ("10.0.0.5:6000", "10.0.0.5:6000"),
        ("fd00::5", "[fd00::5]:5555"),
        ("[fd00::5]", "[fd00::5]:5555"),
        ("[fd00::5]:6000", "[fd00::5]:6000"),
    ],
)
def test_the_address_is_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, shown: str
) -> None:
    assert f" --join {shown} --token" in printed(capsys, "--state", str(tmp_path), "--coordinator", given)


def test_without_an_address_it_is_this_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    match = re.search(r"--join (\S+):5555 --token", printed(capsys, "--state", str(tmp_path)))
    assert match is not None
    assert match[1] != "0.0.0.0"


@pytest.mark.parametrize(
    ("listening", "given", "shown"),
    [
        (CoordinatorAddress("127.0.0.1", 6001), [], "127.0.0.1:6001"),
        (CoordinatorAddress("fd00::5", 6001), [], "[fd00::5]:6001"),
        (CoordinatorAddress("127.0.0.1", 6001), ["--coordinator", "gpu-1"], "gpu-1:6001"),
        (CoordinatorAddress("127.0.0.1", 6001), ["--coordinator", "gpu-1:6002"], "gpu-1:6002"),
    ],
)
def test_the_command_leads_to_where_the_coordinator_listens(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    listening: CoordinatorAddress,
    given: list[str],
    shown: str,
) -> None:
    listening.write(tmp_path)
    assert f" --join {shown} --token" in printed(capsys, "--state", str(tmp_path), *given)


def test_every_address_of_this_machine_is_shown_as_one_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CoordinatorAddress("0.0.0.0", 6001).write(tmp_path)
    match = re.search(r"--join (\S+):6001 --token", printed(capsys, "--state", str(tmp_path)))
    assert match is not None
    assert match[1] != "0.0.0.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lifetime", "1"], "--lifetime must be a number with s, m, h or d"),
        (["--lifetime", "-1h"], "--lifetime must be a number with s, m, h or d"),
        (["--lifetime", "0m"], "--lifetime must be above 0 and at most 30d, not 0m"),
        (["--lifetime", "31d"], "--lifetime must be above 0 and at most 30d, not 31d"),
        (["--coordinator", "a b"], "--coordinator must be HOST:PORT"),
        (["--coordinator", "host:70000"], "--coordinator must be HOST:PORT"),
        (["--coordinator", "host:"], "--coordinator must be HOST:PORT"),
        (["--coordinator", "https://host:1"], "--coordinator must be HOST:PORT"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    flag, value = arguments
    assert cli.main(["token", "--state", str(tmp_path / "a"), f"{flag}={value}"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_damaged_state_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "authority.pem").touch(mode=0o600)
    assert cli.main(["token", "--state", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"distllm: the cluster's authority {tmp_path}/authority.pem is damaged: restore it")
    assert shown.count("\n") == 1
