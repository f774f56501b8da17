"""Frames out of a stream that comes in pieces of any size. Does no input or output itself."""

from collections.abc import Iterator

import torch

from distllm.engine.pipeline.wire.frame import Frame, open_frame
from distllm.engine.pipeline.wire.layout import PREFIX_BYTES, Layout, Prefix, parse_envelope, parse_prefix
from distllm.engine.pipeline.wire.malformed_frame import MalformedFrame, TruncatedFrame


class StreamDecoder:
    """Holds one unfinished frame at most, of no more than `max_bytes`, once its size has been checked.

    A frame's tensors lie in memory of their own, aligned to 64 bytes. After MalformedFrame no more can be decoded.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._failure: MalformedFrame | None = None
        self._begin()

    def feed(self, piece: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """The frames that end in `piece`; to be exhausted. Raises MalformedFrame after those before the bad one."""
        rest = memoryview(piece)
        try:
            while rest:
                if self._failure is not None:
                    raise self._failure
                taken = rest[: len(self._part) - self._num_filled]
                self._part[self._num_filled : self._num_filled + len(taken)] = taken
                self._num_filled += len(taken)
                rest = rest[len(taken) :]
                if self._num_filled == len(self._part) and (frame := self._advance()) is not None:
                    yield frame
        except MalformedFrame as failure:
            self._failure = failure
            raise

    def finish(self) -> None:
        """The stream has ended. Raises MalformedFrame where that was within a frame."""
        if self._failure is not None:
            raise self._failure
        if self._num_filled:
            raise TruncatedFrame(self._num_filled, len(self._part))

    def _begin(self) -> None:
        self._part = memoryview(bytearray(PREFIX_BYTES))
        self._num_filled = 0
        self._prefix: Prefix | None = None
        self._layout: Layout | None = None

    def _advance(self) -> Frame | None:
        """Prefix, then envelope, then payload: each says how far the next reaches, and may be empty."""
        if self._prefix is None:
            self._prefix = parse_prefix(self._part, self._max_bytes)
            self._extend_to(self._prefix.payload_start)
            return None
        if self._layout is None:
            self._layout = parse_envelope(self._prefix, self._part, self._max_bytes)
            self._extend_to(self._layout.frame_bytes)
            if self._num_filled < len(self._part):
                return None
        frame = open_frame(self._layout, self._part)
        self._begin()
        return frame

    def _extend_to(self, num_bytes: int) -> None:
        longer = torch.empty(num_bytes, dtype=torch.uint8).numpy().data
        longer[: self._num_filled] = self._part
        self._part = longer
