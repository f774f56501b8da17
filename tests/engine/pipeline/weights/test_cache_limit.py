"""A cache stays within its limit at the cost of what was not used for longest, and never of what is in use."""

import os
import shutil
from pathlib import Path

import pytest

from distllm.engine.pipeline.weights.cache_limit import CacheLimit

KIB = 1024


def at(cache: Path, letter: str) -> Path:
    """The directory of a checkpoint with a simple fingerprint."""
    return cache / (64 * letter)


def fill(cache: Path, name: str, used_s: float, num_bytes: int = 100 * KIB) -> Path:
    """A checkpoint of the cache that was used at a time."""
    path = at(cache, name)
    path.mkdir(parents=True)
    (path / "weights-1.safetensors").write_bytes(bytes(num_bytes))
    (path / "in-use").touch()
    os.utime(path / "in-use", (used_s, used_s))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three checkpoints of 100 KiB, used in the order of their names."""
    for number, name in enumerate(("a", "b", "c")):
        fill(tmp_path / "cache", name, 1000.0 + number)
    return tmp_path / "cache"


def names(cache: Path) -> list[str]:
    """The letters of the checkpoints, and the whole names of what else is there."""
    return sorted(path.name[:1] if len(path.name) == 64 else path.name for path in cache.iterdir())


def test_without_a_limit_nothing_is_removed(cache: Path) -> None:
    CacheLimit(cache, None).make_room(1 << 40)
    assert names(cache) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("limit_kib", "left"), [(400, "abc"), (399, "bc"), (300, "bc"), (200, "c"), (100, "")], ids=str
)
def test_what_was_not_used_for_longest_makes_room(cache: Path, limit_kib: int, left: str) -> None:
    CacheLimit(cache, limit_kib * KIB).make_room(100 * KIB)
    assert names(cache) == list(left)


def test_what_is_used_now_is_used_last_and_stays(cache: Path) -> None:
    limit = CacheLimit(cache, 200 * KIB)
    limit.use(at(cache, "a"))
    limit.make_room(50 * KIB)
    assert names(cache) == ["a"]
    limit.use(at(cache, "d"))
    limit.make_room(150 * KIB)
    assert names(cache) == ["d"]


def test_what_another_process_uses_stays_even_above_the_limit(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = CacheLimit(cache, None)
    other.use(at(cache, "a"))
    CacheLimit(cache, 100 * KIB).make_room(50 * KIB)
    assert names(cache) == ["a"]
    assert "more than --cache-limit allows: 100 KiB" in caplog.text
    other.close()
    CacheLimit(cache, 100 * KIB).make_room(50 * KIB)
    assert names(cache) == []


def test_what_an_end_left_half_removed_is_removed(cache: Path) -> None:
    shutil.move(at(cache, "a"), cache / ".removed-1")
    CacheLimit(cache, 400 * KIB).make_room(0)
    assert names(cache) == ["b", "c"]


def test_a_directory_that_is_not_there_yet_is_made_when_it_is_used(tmp_path: Path) -> None:
    limit = CacheLimit(tmp_path / "cache", 1)
    limit.use(at(tmp_path / "cache", "a"))
    assert names(tmp_path / "cache") == ["a"]


def test_what_is_no_checkpoint_of_the_cache_is_not_touched(cache: Path) -> None:
    (cache / "photos").mkdir()
    (cache / "letter.txt").write_text("dear")
    CacheLimit(cache, 0).make_room(1)
    assert names(cache) == ["letter.txt", "photos"]
