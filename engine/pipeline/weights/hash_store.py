"""The SHA-256 of stored tensors, computed once for as long as their files stay as they are."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from distllm.engine.durable import write_private
from distllm.engine.pipeline.weights.tensor_place import TensorPlace

_MAX_THREADS = 8


class _FileHashes(msgspec.Struct, frozen=True):
    """What a file was when its tensors were hashed, and their hashes by name."""

    path: str
    num_bytes: int
    mtime_ns: int
    sha256: dict[str, str]

    def is_of(self, other: "_FileHashes") -> bool:
        return (self.path, self.num_bytes, self.mtime_ns) == (other.path, other.num_bytes, other.mtime_ns)


class HashStore:
    """Keeps hashes in `directory`, one small file for each file of tensors."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def hash_tensors(
        self, places: Iterable[TensorPlace], on_bytes: Callable[[int], object] = lambda _: None
    ) -> dict[str, str]:
        """SHA-256 in hexadecimal by tensor name. `on_bytes` hears how many are done.

        Raises CheckpointError where a file cannot be read, or OSError where hashes cannot be kept.
        """
        by_shard: dict[Path, list[TensorPlace]] = defaultdict(list)
        for place in places:
            by_shard[place.tensor.shard].append(place)
        found: dict[str, str] = {}
        for shard, inside in sorted(by_shard.items()):
            known = self._known(shard)
            new = [place for place in inside if place.tensor.name not in known.sha256]
            on_bytes(sum(place.tensor.num_bytes for place in inside if place.tensor.name in known.sha256))
            if new:
                known = msgspec.structs.replace(known, sha256=known.sha256 | _hash_all(new, on_bytes))
                self._keep(known)
            found |= {place.tensor.name: known.sha256[place.tensor.name] for place in inside}
        return found

    def _known(self, shard: Path) -> _FileHashes:
        """What is known of a file as it is now."""
        status = shard.stat()
        now = _FileHashes(str(shard.resolve()), status.st_size, status.st_mtime_ns, {})
        try:
            kept = msgspec.msgpack.decode(self._record(now.path).read_bytes(), type=_FileHashes)
        except (OSError, msgspec.DecodeError):
            return now
        return kept if kept.is_of(now) else now

    def _keep(self, known: _FileHashes) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._record(known.path), msgspec.msgpack.encode(known))

    def _record(self, path: str) -> Path:
        return self._directory / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.msgpack"


def _hash_all(places: Sequence[TensorPlace], on_bytes: Callable[[int], object]) -> dict[str, str]:
    """In several threads: reading and hashing leave the interpreter's lock to others."""
    found = {}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "hash") as pool:
        futures = {pool.submit(place.sha256): place.tensor for place in places}
        try:
            for future in as_completed(futures):
                tensor = futures[future]
                found[tensor.name] = future.result()
                on_bytes(tensor.num_bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found
