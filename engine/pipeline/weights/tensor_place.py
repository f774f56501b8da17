"""Where the bytes of stored tensors lie. Importable without torch."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distllm.engine.checkpoint import CheckpointError, StoredTensor, locate_tensors

_HASHED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor in a file: its bytes are those from `begin` on."""

    tensor: StoredTensor
    begin: int

    def read(self, offset: int, num_bytes: int) -> bytes:
        """The tensor's bytes [offset, offset + num_bytes). Raises CheckpointError where they are not there."""
        assert 0 <= offset <= offset + num_bytes <= self.tensor.num_bytes
        try:
            with self.tensor.shard.open("rb", buffering=0) as file:
                file.seek(self.begin + offset)
                read = file.read(num_bytes)
        except OSError as error:
            raise CheckpointError(f"{self.tensor.shard} cannot be read: {error.strerror}") from None
        if len(read) != num_bytes:
            raise CheckpointError(f"{self.tensor.shard} has been cut short since it was opened; fetch it again")
        return read

    def sha256(self) -> str:
        """Of the tensor's bytes, in hexadecimal. Raises CheckpointError as `read` does."""
        digest = hashlib.sha256()
        for offset in range(0, self.tensor.num_bytes, _HASHED_BYTES):
            digest.update(self.read(offset, min(_HASHED_BYTES, self.tensor.num_bytes - offset)))
        return digest.hexdigest()


def find_places(shards: Iterable[Path]) -> dict[str, TensorPlace]:
    """The place of every tensor in safetensors files, by its name. Raises CheckpointError."""
    return {tensor.name: TensorPlace(tensor, begin) for shard in shards for tensor, begin in locate_tensors(shard)}
