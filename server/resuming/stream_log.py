"""Resumable streams on disk, one file each, from which a server that was killed goes on.

    file:    record record ... record   (appended to, never changed; the last may be torn)
    record:  length, 4 bytes | CRC-32, 4 bytes | msgpack

The first record is the StreamHead, every other a SequenceOutput. The head is on disk before the first event is
sent. Outputs are written before their events are sent and left to the system to put on disk: the end of a process
loses none of them, a power failure the last ones, and those are computed again, with the same tokens.
"""

import contextlib
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from distllm.engine.durable import locked, write_private
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir
from distllm.scheduler.messages import SequenceOutput
from distllm.server.resuming.stream_head import StreamHead

logger = logging.getLogger("distllm.server")

_PREFIX = struct.Struct(">II")


class StreamLogUnusable(Exception):
    """There can be no log in this directory; the message names it, what is wrong and the remedy."""


class StreamLog:
    """The files of one directory, which belongs to one server at a time. Get one from `open_log`.

    `logged` are the streams that the server before has left, oldest first; files that hold none are removed. A file
    that cannot be written ends there, which is said once; what is missing at its end is computed again.
    """

    def __init__(self, directory: Path) -> None:
        self.num_bytes = 0
        self._directory = directory
        self._has_warned = False
        found = [stream for path in list(directory.iterdir()) if (stream := self._read(path))]
        self.logged = sorted(found, key=lambda stream: stream.head.arrival_s)

    @property
    def numerics(self) -> str | None:
        """In which order of sums the streams must go on, if there are any."""
        return self.logged[-1].head.numerics if self.logged else None

    def begin(self, head: StreamHead) -> "StreamFile | None":
        """A new file, on disk when this returns, which takes milliseconds; None where it cannot be written."""
        path = self._directory / f"{head.request_id}.stream"
        record = _record(msgspec.msgpack.encode(head))
        try:
            write_private(path, record)
            return StreamFile(self, path, len(record))
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            self.warn(error)
            return None

    def warn(self, error: OSError) -> None:
        """Say once that streams are not written down as they should."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s cannot be written (%s): streams go on, and those begun now do not outlast this server",
                self._directory,
                error.strerror,
            )

    def _read(self, path: Path) -> "LoggedStream | None":
        try:
            records = list(_whole_records(path.read_bytes()))
            head = msgspec.msgpack.decode(records[0] if records else b"", type=StreamHead)
            outputs = [msgspec.msgpack.decode(record, type=SequenceOutput) for record in records[1:]]
            size = sum(_PREFIX.size + len(record) for record in records)
            os.truncate(path, size)
            return LoggedStream(head, outputs, StreamFile(self, path, size))
        except (OSError, msgspec.DecodeError, ValueError) as error:
            logger.warning("%s holds no stream and is removed: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None


class StreamFile:
    """One stream's file, open for its outputs."""

    def __init__(self, log: StreamLog, path: Path, num_bytes: int) -> None:
        self._log = log
        self._path = path
        self._num_bytes = num_bytes
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND)
        log.num_bytes += num_bytes

    def append(self, output: SequenceOutput) -> None:
        """Write an output; where that fails, this one and all after it are left out.

        It goes no further than the system's memory, which takes microseconds.
        """
        if self._descriptor is None:
            return
        record = _record(msgspec.msgpack.encode(output))
        try:
            num_written = os.write(self._descriptor, record)
        except OSError as error:
            self._log.warn(error)
            self.close()
            return
        self._num_bytes += num_written
        self._log.num_bytes += num_written
        if num_written < len(record):  # the next write would say why; a record must not follow half a one
            self.close()

    def close(self) -> None:
        """Nothing more is appended; the file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        self.close()
        self._log.num_bytes -= self._num_bytes
        self._num_bytes = 0
        with contextlib.suppress(OSError):
            self._path.unlink()


@dataclass(frozen=True, slots=True)
class LoggedStream:
    """A stream as its file tells it, with the outputs that it had when the server ended."""

    head: StreamHead
    outputs: list[SequenceOutput]
    file: StreamFile


@contextlib.contextmanager
def open_log(state_dir: Path) -> Iterator[StreamLog]:
    """The log in a state directory. Raises StreamLogUnusable."""
    with contextlib.ExitStack() as stack:
        try:
            directory = make_private_dir(make_private_dir(state_dir) / "streams")
            stack.enter_context(locked(directory, fcntl.LOCK_NB))
            log = StreamLog(directory)
        except ClusterStateError as error:
            raise StreamLogUnusable(str(error)) from None
        except BlockingIOError:
            reason = "is used by another server that runs: end it, or name another --state"
            raise StreamLogUnusable(f"{directory} {reason}") from None
        except OSError as error:
            raise StreamLogUnusable(f"{directory} cannot be used: {error.strerror}; name another --state") from None
        yield log


def _record(content: bytes) -> bytes:
    return _PREFIX.pack(len(content), zlib.crc32(content)) + content


def _whole_records(content: bytes) -> Iterator[bytes]:
    """The contents of the records up to the first that is torn or damaged."""
    start = _PREFIX.size
    while start <= len(content):
        length, checksum = _PREFIX.unpack_from(content, start - _PREFIX.size)
        record = content[start : start + length]
        if not record or len(record) < length or zlib.crc32(record) != checksum:
            return  # a power failure may leave zeros, which are the prefix of an empty record
        yield record
        start += length + _PREFIX.size
