"""The faster way to read wins, and what keeps DeepSpeed's from running is said once."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from distllm.engine.offload import deepspeed_aio, reader_choice
from distllm.engine.offload.deepspeed_aio import AioReader, AioUnavailable, open_aio
from distllm.engine.offload.disk_file import DiskFile
from distllm.engine.offload.host_buffer import host_buffer
from distllm.engine.offload.reader_choice import choose_reader
from distllm.engine.offload.readers import PlainReader, Reader


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskFile]:
    monkeypatch.setattr(reader_choice, "_MIN_FILE_BYTES", 1)
    file = DiskFile(tmp_path)
    file.append(memoryview(bytes(range(256)) * 4096))
    yield file
    file.close()


class TimedReader:
    """Reads nothing, in no time or in some."""

    name = "another way"

    def __init__(self) -> None:
        self.is_closed = False

    def read(self, buffer: memoryview, offset: int) -> None:
        assert (len(buffer), offset) == (1 << 20, 0)

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("is_faster", [True, False])
def test_the_faster_reader_is_taken_and_the_other_closed(
    file: DiskFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_faster: bool
) -> None:
    other = TimedReader()
    monkeypatch.setattr(reader_choice, "open_aio", lambda file: other)
    rates = {PlainReader: 2.0, TimedReader: 3.0 if is_faster else 1.0}
    monkeypatch.setattr(reader_choice, "_rate", lambda reader, buffer: rates[type(reader)])
    with caplog.at_level(logging.INFO, "distllm.engine"):
        chosen: Reader = choose_reader(file)
    assert (chosen is other) is is_faster
    assert other.is_closed is not is_faster
    assert f"the disk gives 2.00 GB/s by {PlainReader(file).name}, {rates[TimedReader]:.2f} by" in caplog.text


def test_what_is_missing_is_said_and_plain_reads_serve(
    file: DiskFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        assert isinstance(choose_reader(file), PlainReader)
    assert caplog.messages == [
        "offloaded layers are read without DeepSpeed's asynchronous I/O: libaio is not installed"
    ]


def test_an_operation_that_is_not_built_is_no_fault(file: DiskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("undefined symbol: io_submit\nand more")

    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libaio.so.1")
    monkeypatch.setattr(deepspeed_aio, "_open_handle", fail)
    assert open_aio(file) == AioUnavailable("undefined symbol: io_submit")


def test_the_operation_reads_what_plain_reads_do(file: DiskFile) -> None:
    reader = open_aio(file)
    if isinstance(reader, AioUnavailable):
        pytest.skip(reader.reason)
    assert isinstance(reader, AioReader)
    plain, ours = host_buffer(8192).host, host_buffer(8192).host
    PlainReader(file).read(plain, 4096)
    reader.read(ours, 4096)
    assert plain.tobytes() == ours.tobytes()
