"""Chooses where the other ranks are: processes that this one starts, or those that a launcher has placed."""

import os
import socket

from distllm.engine.config import EngineConfig
from distllm.engine.distributed.cores import share_cores
from distllm.engine.distributed.hosts.several_hosts import SeveralHosts
from distllm.engine.distributed.launcher.gathering import gather_ranks
from distllm.engine.distributed.launcher.launch import LaunchedRanks, read_secret
from distllm.engine.distributed.local_rank import LaunchedRank, SpawnedRank
from distllm.engine.distributed.one_host import OneHost
from distllm.engine.distributed.placement import Placement
from distllm.engine.progress import Progress


def place_ranks(config: EngineConfig, size: int, on_progress: Progress) -> Placement:
    """The ranks 1 .. size - 1, which wait to be told what to load. Raises LaunchError."""
    if config.launched is None:
        return spawn_ranks(size)
    return _meet(config.launched, config.rank_timeout_s, on_progress)


def spawn_ranks(size: int) -> OneHost:
    """The same as processes of this host that this one starts."""

    def make(arrivals: int, frame: int) -> list[SpawnedRank]:
        return [SpawnedRank(number, arrivals, frame) for number in range(1, size)]

    cores = share_cores(size)
    return OneHost(size, cores, sum(map(len, cores)), make)


def _meet(launched: LaunchedRanks, timeout_s: float, on_progress: Progress) -> Placement:
    secret = read_secret(os.environ, launched.num_hosts)
    with socket.socket(fileno=launched.listener) as listener:  # the front end keeps its own
        connections = gather_ranks(listener, secret, launched.size, on_progress)
    if launched.num_hosts > 1:
        return SeveralHosts(launched, connections, timeout_s)
    cores = share_cores(launched.size)
    num_cores = sum(map(len, cores))
    if launched.binds_cores:
        num_cores = launched.size * len(os.sched_getaffinity(0))
        cores = [frozenset()] * launched.size

    def make(arrivals: int, frame: int) -> list[LaunchedRank]:
        return [
            LaunchedRank(number, connection, arrivals, frame) for number, connection in enumerate(connections, 1)
        ]

    return OneHost(launched.size, cores, num_cores, make)
