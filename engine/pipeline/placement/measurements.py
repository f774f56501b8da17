"""What placement knows: a model's sizes, what each peer measured of itself, and the links between them.

Plain values that cross processes and JSON; each refuses numbers that cannot be, with ValueError.
"""

from bisect import bisect_left
from itertools import pairwise
from math import inf, isfinite
from typing import NewType

from msgspec import Struct

from distllm.engine.pipeline.wire.codec_names import CodecName

PeerId = NewType("PeerId", str)

COORDINATOR = PeerId("coordinator")
"""The end of links to and from the engine process. No peer may be called so."""

_MAX_S = 60.0
_MIN_BYTES_PER_S = 1000.0
"""Beyond these nothing could be served; within them, nanoseconds add up exactly in 53 bits."""


class ModelSizes(Struct, frozen=True):
    """Of a decoder as it is served, in bytes. The first stage holds the embedding, the last one the head.

    The head is the final norm and the output projection. `tied_bytes` of both are the same tensor, which one stage
    that is first and last holds once. `activation_bytes` are those of one token between two stages on the wire.
    `quantization` names how each layer is quantized, such as w8; "" where it is as it is stored.
    """

    layer_bytes: tuple[int, ...]
    embedding_bytes: int
    head_bytes: int
    hidden_size: int
    activation_bytes: int
    tied_bytes: int = 0
    quantization: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layer_bytes:
            raise ValueError("a model has at least one layer")
        _not_negative(min(self.layer_bytes), "layer_bytes")
        for name in ("embedding_bytes", "head_bytes", "tied_bytes"):
            _not_negative(getattr(self, name), name)
        for name in ("hidden_size", "activation_bytes"):
            _positive(getattr(self, name), name)
        if self.tied_bytes > min(self.embedding_bytes, self.head_bytes):
            raise ValueError("tied_bytes are part of the embedding and of the head, and larger than one of them")
        if len(self.quantization) not in (0, self.num_layers):
            raise ValueError(f"{len(self.quantization)} of {self.num_layers} layers have a quantization")

    def quantization_of(self, begin: int, end: int) -> str:
        """All names of layers [begin, end) in a line."""
        return " and ".join(name for name in dict.fromkeys(self.quantization[begin:end]) if name)

    @property
    def num_layers(self) -> int:
        return len(self.layer_bytes)


class RowTimes(Struct, frozen=True):
    """Seconds that something takes for the numbers of rows it was measured at: `seconds[i]` for `rows[i]`."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError("each number of rows has one time, and there is at least one")
        if self.rows[0] < 1 or any(fewer >= more for fewer, more in pairwise(self.rows)):
            raise ValueError(f"numbers of rows rise from 1 or more, not {self.rows}")
        for seconds in self.seconds:
            _positive(seconds, "a time in seconds", _MAX_S)

    def at(self, num_rows: int) -> float:
        """Seconds for `num_rows`: on the line between its neighbours, below the first of them the first's.

        Beyond the last, on the line through the last two, or level where that falls or where there is one only.
        """
        index = bisect_left(self.rows, num_rows)
        if index == 0 or len(self.rows) == 1:
            return self.seconds[0]
        index = min(index, len(self.rows) - 1)
        slope = (self.seconds[index] - self.seconds[index - 1]) / (self.rows[index] - self.rows[index - 1])
        if num_rows > self.rows[-1]:
            return self.seconds[-1] + max(0.0, slope) * (num_rows - self.rows[-1])
        return self.seconds[index - 1] + slope * (num_rows - self.rows[index - 1])


class PeerMeasurements(Struct, frozen=True):
    """What a peer measured. `free_bytes` are for weights and KV: what activations need is already taken off.

    `decode` times one layer, `head` the head, by rows of a step; `prefill_s` are seconds of a layer for each token
    of a long chunk; `kv_token_bytes` is the KV of a token in one layer. `model` has the model's sizes on this peer,
    where they are others than the cluster's.
    """

    peer_id: PeerId
    decode: RowTimes
    head: RowTimes
    prefill_s: float
    free_bytes: int
    kv_token_bytes: int
    model: ModelSizes | None = None

    def __post_init__(self) -> None:
        if not self.peer_id or self.peer_id == COORDINATOR:
            raise ValueError(f"a peer cannot be called {self.peer_id!r}")
        _positive(self.prefill_s, "prefill_s", 1.0)
        _not_negative(self.free_bytes, "free_bytes")
        _positive(self.kv_token_bytes, "kv_token_bytes")


class Link(Struct, frozen=True):
    """One direction from `source` to `target`, each a peer or the coordinator: one-way delay and goodput."""

    source: PeerId
    target: PeerId
    delay_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        _not_negative(self.delay_s, "delay_s", _MAX_S)
        if not (isfinite(self.bytes_per_s) and self.bytes_per_s >= _MIN_BYTES_PER_S):
            raise ValueError(f"bytes_per_s must be finite and at least {_MIN_BYTES_PER_S}, not {self.bytes_per_s}")
        if self.source == self.target:
            raise ValueError(f"a link joins two ends, not {self.source} with itself")


class EdgeCodec(Struct, frozen=True):
    """How activations would go from one peer to another, straight or relayed: in how many bytes a token.

    To encode and decode those of a token takes `coding_s`.
    """

    source: PeerId
    target: PeerId
    codec: CodecName
    token_bytes: int
    coding_s: float

    def __post_init__(self) -> None:
        _positive(self.token_bytes, "token_bytes")
        _not_negative(self.coding_s, "coding_s", _MAX_S)


class Cluster(Struct, frozen=True):
    """A model and the peers that could serve it. A link that is not there is one that cannot be reached.

    Where there is no codec, activations go as they are.
    """

    model: ModelSizes
    peers: tuple[PeerMeasurements, ...]
    links: tuple[Link, ...]
    codecs: tuple[EdgeCodec, ...] = ()

    def __post_init__(self) -> None:
        if len({peer.peer_id for peer in self.peers}) < len(self.peers):
            raise ValueError("two peers have the same id")
        if len({(link.source, link.target) for link in self.links}) < len(self.links):
            raise ValueError("one direction of a link is given twice")
        if len({(codec.source, codec.target) for codec in self.codecs}) < len(self.codecs):
            raise ValueError("one direction between two peers has two codecs")

    def peer(self, peer_id: PeerId) -> PeerMeasurements:
        """Raises KeyError for a peer that is not there."""
        for peer in self.peers:
            if peer.peer_id == peer_id:
                return peer
        raise KeyError(peer_id)


def _not_negative(number: float, name: str, most: float = inf) -> None:
    if not (isfinite(number) and 0 <= number <= most):
        raise ValueError(f"{name} must be finite, at least 0 and at most {most}, not {number}")


def _positive(number: float, name: str, most: float = inf) -> None:
    _not_negative(number, name, most)
    if number == 0:
        raise ValueError(f"{name} must be more than 0")
