"""Fetches tensors into a cache: in pieces, several at a time. None is kept that is not what the manifest says."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.conversion.output import check_room
from distllm.engine.pipeline.weights.manifest import TensorRecord
from distllm.engine.pipeline.weights.messages import Span
from distllm.engine.pipeline.weights.remotes import Remotes
from distllm.engine.pipeline.weights.tensor_place import TensorPlace
from distllm.engine.pipeline.weights.unfinished_shard import UnfinishedShard
from distllm.engine.pipeline.weights.weight_cache import WeightCache, divide_into_shards

logger = logging.getLogger("distllm.pipeline")

PIECE_BYTES = 1 << 20
"""As much as the smallest network.max_message_size_mb allows."""
_MAX_PIECES_AT_ONCE = 16
_SHARD_BYTES = 256 << 20
"""What an interrupted fetch loses at most, of each file that it was writing."""
_MAX_SHARDS_AT_ONCE = 2
"""So that pieces of one are on their way while the other is being verified."""
_MAX_ATTEMPTS = 3

Item = TypeVar("Item")


@dataclass(slots=True)
class Piece:
    """What lies in a file from `begin` on: spans without gaps between them."""

    begin: int
    spans: list[Span] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def end(self) -> int:
        return self.begin + self.num_bytes

    def append(self, span: Span) -> None:
        self.spans.append(span)
        self.num_bytes += span.num_bytes


class WeightFetch:
    """Fetches tensors of one checkpoint. `on_bytes` hears how many have come; less than 0 where some are wrong."""

    def __init__(
        self,
        remotes: Remotes,
        cache: WeightCache,
        fingerprint: str,
        on_bytes: Callable[[int], None],
        shard_bytes: int = _SHARD_BYTES,
    ) -> None:
        self._remotes = remotes
        self._cache = cache
        self._fingerprint = fingerprint
        self._on_bytes = on_bytes
        self._shard_bytes = shard_bytes
        self._gate = asyncio.Semaphore(_MAX_PIECES_AT_ONCE)

    async def fetch(self, tensors: Mapping[str, TensorRecord]) -> None:
        """Have these tensors in the cache. Those of files that are finished stay there, whatever happens.

        Raises CheckpointError where a tensor is not what its record says, or OSError where it cannot be kept.
        """
        sizes = {name: record.num_bytes for name, record in tensors.items()}
        check_room(self._cache.path(self._fingerprint) / "weights", sum(sizes.values()))
        gate = asyncio.Semaphore(_MAX_SHARDS_AT_ONCE)
        shards = [{name: tensors[name] for name in names} for names in divide_into_shards(sizes, self._shard_bytes)]
        await _for_each(shards, gate, self._fetch_shard)

    async def _fetch_shard(self, tensors: Mapping[str, TensorRecord]) -> None:
        with self._cache.begin_shard(self._fingerprint, tensors) as shard:
            wrong = list(shard.places.values())
            for attempt in range(_MAX_ATTEMPTS):
                fetch_piece = partial(self._fetch_piece, shard, may_ask_peers=attempt == 0)
                await _for_each(cut_pieces(wrong, PIECE_BYTES), self._gate, fetch_piece)
                wrong = await asyncio.to_thread(_find_wrong, wrong, tensors)
                if not wrong:
                    await asyncio.to_thread(shard.finish)
                    return
                self._on_bytes(-sum(place.tensor.num_bytes for place in wrong))
                logger.warning("%s arrived damaged", _in_words(wrong))
        raise CheckpointError(
            f"{_in_words(wrong)} arrived {_MAX_ATTEMPTS} times with another SHA-256 than the coordinator's "
            "manifest says; if the files there have changed, start the coordinator again"
        )

    async def _fetch_piece(self, shard: UnfinishedShard, piece: Piece, *, may_ask_peers: bool) -> None:
        content = await self._remotes.read(piece.spans, may_ask_peers=may_ask_peers)
        await asyncio.to_thread(shard.write, piece.begin, content)
        self._on_bytes(piece.num_bytes)


def cut_pieces(places: Iterable[TensorPlace], max_bytes: int) -> list[Piece]:
    """All bytes of tensors in one file, in pieces of at most `max_bytes`.

    tensors:  | a | b |        c        |     (others between)     | d |
    pieces:   |     0     |      1      |                          | 2 |
    """
    pieces: list[Piece] = []
    for place in sorted(places, key=lambda place: place.begin):
        offset = 0
        while offset < place.tensor.num_bytes:
            if not pieces or pieces[-1].end != place.begin + offset or pieces[-1].num_bytes == max_bytes:
                pieces.append(Piece(place.begin + offset))
            num_bytes = min(max_bytes - pieces[-1].num_bytes, place.tensor.num_bytes - offset)
            pieces[-1].append(Span(place.tensor.name, offset, num_bytes))
            offset += num_bytes
    return pieces


async def _for_each(
    items: Iterable[Item], gate: asyncio.Semaphore, work: Callable[[Item], Awaitable[None]]
) -> None:
    """Work on all, as many at once as pass the gate. The first error ends the work on others, and is raised."""

    async def work_on(item: Item) -> None:
        async with gate:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(work_on(item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _in_words(places: Sequence[TensorPlace]) -> str:
    others = f" and {len(places) - 1} other tensors" if len(places) > 1 else ""
    return f"{places[0].tensor.name}{others}"


def _find_wrong(places: Iterable[TensorPlace], tensors: Mapping[str, TensorRecord]) -> list[TensorPlace]:
    return [place for place in places if place.sha256() != tensors[place.tensor.name].sha256]
