"""The file of the layers: nameless, past the page cache where it can be, and its faults told in one line."""

import mmap
import os
import random
from pathlib import Path

import pytest

from distllm.engine.offload import disk_file
from distllm.engine.offload.disk_file import DiskFile, pages
from distllm.engine.offload.errors import OffloadError
from distllm.engine.offload.readers import PlainReader


def read(file: DiskFile, begin: int, num_bytes: int) -> bytes:
    memory = mmap.mmap(-1, pages(num_bytes))
    reader = PlainReader(file)
    reader.read(memoryview(memory), begin)
    reader.close()
    return memory[:num_bytes]


@pytest.mark.parametrize("has_direct_io", [True, False])
def test_contents_of_any_length_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_direct_io: bool
) -> None:
    monkeypatch.setattr(disk_file, "_BOUNCE_BYTES", 8192)
    if not has_direct_io:
        monkeypatch.setattr(disk_file, "_bypass_page_cache", lambda fd: False)
    file = DiskFile(tmp_path)
    contents = [random.Random(size).randbytes(size) for size in (1, 4096, 5000, 8192, 20_000)]
    begins = [file.append(memoryview(content)) for content in contents]
    assert [begin % 4096 for begin in begins] == [0] * 5
    assert [read(file, begin, len(content)) for begin, content in zip(begins, contents, strict=True)] == contents
    file.close()


def test_the_file_has_no_name_and_ends_with_its_owner(tmp_path: Path) -> None:
    file = DiskFile(tmp_path)
    file.append(memoryview(b"x"))
    assert not list(tmp_path.iterdir())
    assert os.stat(file.path).st_nlink == 0
    file.close()


def test_reading_past_the_end_is_a_fault(tmp_path: Path) -> None:
    file = DiskFile(tmp_path)
    file.append(memoryview(b"x"))
    with pytest.raises(OSError, match="end at byte 4096"):
        read(file, 0, 8192)
    file.close()


def test_a_folder_that_is_not_there_is_refused_by_the_flags_name(tmp_path: Path) -> None:
    with pytest.raises(OffloadError, match=r"No such file or directory.*give --offload-dir"):
        DiskFile(tmp_path / "gone")


def test_a_folder_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_file, "_file_system", lambda directory: "tmpfs")
    with pytest.raises(OffloadError, match=r"lies in memory, not on a disk: give --offload-dir"):
        DiskFile(tmp_path)


def test_a_full_disk_is_told_with_what_it_took() -> None:
    file = DiskFile(Path("/var/tmp"))
    file.close()
    file._fd = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(OffloadError, match=r"took 0 bytes of the layers, then No space left on device \(.* free\)"):
        file.append(memoryview(b"x"))
    os.close(file._fd)
