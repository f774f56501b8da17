"""Ranks agree on the pool that the scarcest memory affords: a host's, which its ranks share, or a GPU's own."""

from types import SimpleNamespace

import pytest
import torch

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.pool_agreement import agree_on_pool
from distllm.engine.pool_size import OutOfMemory, PoolNeed

GIB = 2**30
CONFIG = EngineConfig(model="none")


class OfHosts:
    """A RankGroup whose other ranks have said already what they have."""

    rank = local_rank = host = 0

    def __init__(self, hosts: list[int], free_bytes: list[int]) -> None:
        self.size = len(hosts)
        self._others = list(zip(hosts, free_bytes, strict=True))

    def gather_numbers(self, numbers: list[int]) -> list[list[int]]:
        block_bytes, weight_bytes, *_ = numbers
        return [[block_bytes, weight_bytes, free, host] for host, free in self._others]


def agree(hosts: list[int], free_bytes: list[int], config: EngineConfig = CONFIG, device: str = "cpu") -> int:
    served = SimpleNamespace(
        device=torch.device(device),
        weight_bytes=0,
        max_model_len=1024,
        dtype=torch.float32,
        sharding=SimpleNamespace(vocabularies=[]),
        boundary=None,
        pool_config=lambda config, _: config,
        pool_need=lambda _: PoolNeed(block_bytes=GIB >> 10, max_model_len=1024, max_num_seqs=64),
    )
    group = OfHosts(hosts, free_bytes)
    return agree_on_pool(config, served, group, free_bytes[0]).num_blocks  # type: ignore[arg-type]


def test_ranks_of_one_host_share_its_memory() -> None:
    assert agree([0, 0], [GIB, GIB]) == pytest.approx(0.8 * 1024 / 2, abs=1)


def test_ranks_on_hosts_of_their_own_do_not() -> None:
    assert agree([0, 1], [GIB, GIB]) == pytest.approx(0.8 * 1024, abs=1)


def test_the_scarcest_host_decides() -> None:
    assert agree([0, 0, 1], [2 * GIB, 2 * GIB, GIB // 2]) == pytest.approx(0.8 * 512, abs=1)


def test_a_given_size_is_that_of_all_hosts_together() -> None:
    config = EngineConfig(model="none", kv_cache_bytes=GIB)
    assert agree([0, 1], [GIB, GIB], config) == agree([0, 0], [2 * GIB, 2 * GIB], config) == 512


def test_a_host_without_room_is_named() -> None:
    with pytest.raises(OutOfMemory, match="on host 1, "):
        agree([0, 1], [GIB, GIB >> 8])
