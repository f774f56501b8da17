"""The first message to a rank: what to load, and as which of the ranks. Importable without torch."""

import logging
from dataclasses import replace
from typing import Self

import msgspec

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.cores import share_cores
from distllm.engine.distributed.launcher.launch import Launch
from distllm.engine.distributed.membership import Membership
from distllm.engine.pipeline.layer_range import LayerRange


class RankStart(msgspec.Struct, frozen=True, kw_only=True):
    """`cores` None lets the ranks of a host divide its cores; none of them binds the rank to none.

    `first_rank_pid` is None where the first rank runs on another host, or may. `layers` None are all.
    """

    config: EngineConfig
    layers: LayerRange | None = None
    membership: Membership
    cores: list[int] | None
    first_rank_pid: int | None
    log_level: str = msgspec.field(default_factory=lambda: _log_level())

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, message: bytes | bytearray) -> Self:
        """Raises msgspec.ValidationError or msgspec.DecodeError."""
        return msgspec.json.decode(message, type=cls)

    def at(self, launch: Launch) -> Self:
        """The same for the rank that a launcher has placed at `launch`."""
        membership = replace(
            self.membership,
            rank=launch.rank,
            num_local=launch.local_size,
            local_rank=launch.local_rank,
            host=launch.host,
        )
        cores = self.cores
        if cores is None:
            cores = sorted(share_cores(launch.local_size)[launch.local_rank])
        return msgspec.structs.replace(self, membership=membership, cores=cores)


def _log_level() -> str:
    return logging.getLevelName(logging.getLogger().getEffectiveLevel())
