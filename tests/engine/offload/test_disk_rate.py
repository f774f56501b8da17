"""The disk's rate is that of the fastest way to read a whole file, which is gone afterwards."""

from pathlib import Path

from distllm.engine.offload.disk_rate import measure_disk_rate


def test_a_rate_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    assert 1e6 < measure_disk_rate(tmp_path, 32 << 20) < 1e12
    assert not list(tmp_path.iterdir())
