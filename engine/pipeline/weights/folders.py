"""Where a peer's weights are. Importable without torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from distllm.engine.pipeline.security.state_dir import ClusterStateError


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFolders:
    """`copy` is a checkpoint directory, None where this machine has none: then weights are fetched into `cache`.

    `hashes` keeps those of the copy's tensors. The cache is kept within `cache_limit_bytes`, where that is given.
    """

    copy: str | None
    cache: str
    hashes: str
    cache_limit_bytes: int | None = None


def default_cache_dir() -> Path:
    """Raises ClusterStateError."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise ClusterStateError("this user has no home directory: name a folder with --cache") from None
    return Path(base) / "distllm" / "weights"
