"""Figures of the engine at one moment: gauges now, counters since it started."""

import msgspec


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """`_total` fields are counters since the engine process started; the rest are gauges.

    `kv_cache_usage` is the fraction of blocks that live sequences hold, in [0, 1]. `schedule_s_total`,
    `execute_s_total` and `publish_s_total` split the loop's busy seconds.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    preemptions_total: int = 0
    schedule_s_total: float = 0.0
    execute_s_total: float = 0.0
    publish_s_total: float = 0.0
