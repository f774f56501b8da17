"""Whose stream gives way where room is wanted: the room is the server's, and keys share it evenly."""

from collections import Counter
from collections.abc import Callable, Iterable

from distllm.server.resuming.kept_stream import KeptStream

Size = Callable[[KeptStream], int]


def one(_: KeptStream) -> int:
    """Where streams are counted."""
    return 1


def bytes_of(stream: KeptStream) -> int:
    return stream.num_bytes


def next_to_go(streams: Iterable[KeptStream], asker: str, asked: int, size: Size) -> KeptStream | None:
    """Of `streams`, oldest first, the one that makes room for `asked` more of `asker`, by the `size` of each.

    The key that holds most gives way. It is another's only where it holds more than the asker would: then its
    streams go that have ended and are not read, then those that are read, which lose no more than that they can be
    resumed, then those whose clients are away. Where the asker holds most, only what has ended of its own goes;
    None where there is nothing of it.
    """
    candidates = list(streams)
    held = Counter({asker: asked})
    for stream in candidates:
        held[stream.owner] += size(stream)
    heaviest, most = held.most_common(1)[0]
    owner = heaviest if most > held[asker] else asker
    own = [stream for stream in candidates if stream.owner == owner]
    done = [stream for stream in own if stream.is_ended and not stream.is_read]
    if done or owner == asker:
        return next(iter(done), None)
    return next((stream for stream in own if stream.is_read), own[0])
