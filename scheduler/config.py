"""Limits of the scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """`max_waiting` bounds the queue of requests that do not run yet."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 512
    enable_prefix_caching: bool = True
