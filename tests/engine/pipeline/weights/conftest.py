"""A cluster whose machines give out weights."""

from datetime import datetime
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.authority import ClusterAuthority
from tests.engine.pipeline.weights.machines import Cluster


@pytest.fixture
def cluster(authority: ClusterAuthority, tmp_path: Path, now: datetime) -> Cluster:
    return Cluster(authority, tmp_path / "machines", now)
