"""Free memory is what the machine and the tightest cgroup leave, page cache counted as free."""

from pathlib import Path

import psutil
import pytest

from distllm.engine.memory import VERSION_1, cgroup_headrooms, measure_free_host_bytes


def write_group(directory: Path, limit: str, usage: int, cached: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 1\n")


def test_no_more_than_the_machine_has() -> None:
    assert 0 < measure_free_host_bytes() <= psutil.virtual_memory().total


def test_every_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    write_group(tmp_path / "service", "1000", 700)
    write_group(tmp_path / "service" / "unit", "max", 600)
    write_group(tmp_path, "900", 850)
    assert sorted(cgroup_headrooms(tmp_path, "service/unit")) == [51, 301]


def test_page_cache_can_be_given_back(tmp_path: Path) -> None:
    write_group(tmp_path, "1000", 900, cached=400)
    assert cgroup_headrooms(tmp_path, "") == [501]


def test_limits_of_the_older_interface_count_alike(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("900\n")
    (tmp_path / "memory.stat").write_text(
        "cache 500\ninactive_file 7\ntotal_inactive_file 40\ntotal_active_file 2\n"
    )
    assert cgroup_headrooms(tmp_path, "", VERSION_1) == [142]


@pytest.mark.parametrize("own", ["", "gone/group"])
def test_without_limits_there_is_nothing_to_heed(tmp_path: Path, own: str) -> None:
    assert cgroup_headrooms(tmp_path, own) == []
