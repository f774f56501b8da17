"""Ranks as processes: DeepSpeed's communication, guarded, behind RankGroup."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.meeting_point import interface_towards, open_store
from distllm.engine.distributed.membership import Membership
from distllm.engine.distributed.shared_memory_op import (
    ADDRESS,
    forget_segments,
    load_op,
    segment_paths,
    stale_segments,
    why_not,
)

_HALF_SUMS_LEVEL = 2
"""The op's instruction level (2: AVX-512) from which it sums bf16 and float16. It does not look itself."""
_SET_UP_TIMEOUT = timedelta(minutes=30)
"""Time in which the slowest rank must have loaded its part, before gloo gives up on it."""


class DeepSpeedGroup:
    """A RankGroup over processes. Every call but `pulse` waits for all ranks.

    A process can be a rank once only: neither DeepSpeed's communication nor its shared-memory op starts anew.
    """

    def __init__(self, membership: Membership, arrivals: Arrivals) -> None:
        if torch.distributed.is_initialized():
            raise RuntimeError("this process is a rank already; another model needs a process of its own")
        self.rank = membership.rank
        self.size = membership.size
        self.local_rank = membership.local_rank
        self.host = membership.host
        self._arrivals = arrivals
        self._device = torch.device("cpu" if membership.device_type == "cpu" else f"cuda:{membership.local_rank}")
        self._sum = self._sum_in_shared_memory if membership.shares_memory else self._sum_gathered
        _set_environment(membership)
        if membership.shares_memory:
            self._has_half_sums = load_op().vector_kernel_level() >= _HALF_SUMS_LEVEL
        with _segments(membership):
            self._comm = _init_distributed(membership)
            self.gather_numbers([0])  # all have mapped the segments, and need their names no more

    def sum_rows(self, rows: Tensor) -> Tensor:
        """As RankGroup says; `rows` may be overwritten."""
        with self._arrivals.waiting():
            return self._sum(rows if rows.is_contiguous() else rows.contiguous())

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        with self._arrivals.waiting():
            self._comm.all_gather(everyone, own)
        return [list(map(int, tensor.tolist())) for tensor in everyone]

    def pulse(self) -> None:
        self._arrivals.pulse()

    def _sum_in_shared_memory(self, rows: Tensor) -> Tensor:
        """The op adds buffers in the order of ranks, whatever the size of the message, in place.

        It is called when all ranks have arrived, for it spins until then; and not by deepspeed.comm, which takes as
        long as the op and, where the op has no sum of `rows`' dtype, would go to gloo, whose order is another.
        """
        total = rows if self._has_half_sums else rows.float()
        self._arrivals.meet()
        if total.numel():
            torch.ops.deepspeed.inference_all_reduce_(total)
        return total.to(rows.dtype)

    def _sum_gathered(self, rows: Tensor) -> Tensor:
        """Everyone's rows, added in order: gloo's and NCCL's own sums have an order that depends on the size."""
        everyone = [torch.empty_like(rows) for _ in range(self.size)]
        self._comm.all_gather(everyone, rows)
        total = everyone[0].float()
        for other in everyone[1:]:
            total += other
        return total.to(rows.dtype)


def why_gathered(device_type: str, size: int, num_local: int, num_cores: int) -> str | None:
    """Why ranks do not sum through shared memory; None where they do. Builds the op if need be."""
    os.environ["DS_ACCELERATOR"] = device_type  # else DeepSpeed looks for one, and warns
    if device_type != "cpu":
        return "they are on GPUs"
    if num_local != size:
        return f"{num_local} of {size} ranks are on this host"
    return why_not(size, num_cores)


@contextlib.contextmanager
def _segments(membership: Membership) -> Iterator[None]:
    """While ranks meet, the op's segments have names; the first rank leaves none before or after."""
    paths = segment_paths(membership.name, membership.size) if membership.rank == 0 else []
    forget_segments([*paths, *stale_segments()])
    try:
        yield
    finally:
        forget_segments(paths)


def _set_environment(membership: Membership) -> None:
    """What DeepSpeed reads. LOCAL_SIZE must be WORLD_SIZE where the shared-memory op is used."""
    os.environ.update(
        DS_ACCELERATOR=membership.device_type,
        RANK=str(membership.rank),
        LOCAL_RANK=str(membership.local_rank),
        WORLD_SIZE=str(membership.size),
        LOCAL_SIZE=str(membership.num_local),
        MASTER_ADDR=ADDRESS,
        MASTER_PORT=membership.name,
    )
    meeting_point = urlsplit(membership.meeting_point)
    if membership.num_local == membership.size:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    elif (interface := interface_towards(str(meeting_point.hostname), int(meeting_point.port or 0))) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _init_distributed(membership: Membership) -> Any:
    """deepspeed.comm, with the ranks joined. Returns once all are there."""
    backend = "gloo" if membership.device_type == "cpu" else "nccl"
    if membership.num_local != membership.size:
        torch.distributed.init_process_group(  # DeepSpeed takes over what is there
            backend,
            timeout=_SET_UP_TIMEOUT,
            store=open_store(membership.meeting_point),
            rank=membership.rank,
            world_size=membership.size,
        )
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed

        if not membership.shares_memory:  # else it would be built, and wait for the others' segments
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend=backend,
            auto_mpi_discovery=False,
            verbose=False,
            timeout=_SET_UP_TIMEOUT,
            init_method=membership.meeting_point,
            rank=membership.rank,
            world_size=membership.size,
        )
    return deepspeed.comm
