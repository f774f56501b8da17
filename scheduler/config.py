"""Limits of the scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How many sequences run at once, how many tokens a step carries, how many sequences may wait.

    `max_num_seqs` bounds the sequences that hold KV blocks, `max_num_batched_tokens` the tokens of one step.
    The front end submits while fewer than `max_num_seqs + max_waiting` sequences are live, and an engine accepts as
    many requests: both bound all of them rather than the waiting ones, because after a restart every live request
    waits. Raises ValueError.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting: int = 512
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name, least in (("max_num_seqs", 1), ("max_num_batched_tokens", 1), ("max_waiting", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    @property
    def max_live_requests(self) -> int:
        return self.max_num_seqs + self.max_waiting
