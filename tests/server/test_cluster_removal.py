"""Whoever puts a peer out is told what was done, or what was wrong with the words."""

import time
from pathlib import Path

import pytest

from distllm.engine.pipeline.coordinator.event_file import EventFile
from distllm.engine.pipeline.coordinator.snapshot import ClusterEvent
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.server.cluster_removal import remove_peer
from distllm.server.config import InvalidSettings


def test_a_peer_that_was_seen_is_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EventFile(tmp_path).write([ClusterEvent(time.time(), "joined", "as gpu", "gpu-0a3f")])
    assert remove_peer(tmp_path, "gpu-0a3f") == 0
    said = capsys.readouterr()
    assert said.out.startswith("gpu-0a3f is out")
    assert said.err == ""
    assert RemovedPeers(tmp_path).current() == {"gpu-0a3f"}
    assert remove_peer(tmp_path, "gpv-0a3f") == 0
    assert "is it mistyped? Seen were: gpu-0a3f" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"), [("GPU 1", "PEER: 'GPU 1' is no peer id"), ("coordinator", "the coordinator itself")]
)
def test_what_is_no_peer_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        remove_peer(tmp_path, name)
    assert RemovedPeers(tmp_path).current() == frozenset()


def test_a_directory_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"--state: there is no .*nowhere"):
        remove_peer(tmp_path / "nowhere", "gpu-0a3f")
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_list_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "removed.json").write_text("[")
    assert remove_peer(tmp_path, "gpu-0a3f") == 1
    assert "cannot be read" in capsys.readouterr().err
