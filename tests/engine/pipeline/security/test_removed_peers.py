"""Who was put out stays out, whoever looks; a list that is damaged is no empty one."""

from datetime import datetime
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.security.state_dir import ClusterStateError

A, B = PeerId("a-1"), PeerId("b-1")


def test_nobody_is_out_at_first(tmp_path: Path) -> None:
    assert RemovedPeers(tmp_path / "nowhere").current() == frozenset()


def test_another_process_sees_at_once_who_was_put_out(tmp_path: Path, now: datetime) -> None:
    coordinator, operator = RemovedPeers(tmp_path), RemovedPeers(tmp_path)
    for peer_id, out in ((A, {A}), (B, {A, B}), (A, {A, B})):
        operator.add(peer_id, now)
        assert coordinator.current() == out
    assert RemovedPeers(tmp_path).current() == {A, B}


def test_a_damaged_list_is_told_once_and_what_was_known_is_kept(tmp_path: Path, now: datetime) -> None:
    removed = RemovedPeers(tmp_path)
    removed.add(A, now)
    assert removed.current() == {A}
    (tmp_path / "removed.json").write_text('{"a-1"')
    with pytest.raises(ClusterStateError, match=r"removed\.json.* cannot be read: .*; restore it"):
        removed.current()
    assert removed.current() == {A}
    with pytest.raises(ClusterStateError):
        removed.add(B, now)
