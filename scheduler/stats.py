"""Figures of the engine at one moment: gauges now, counters since it started."""

from collections.abc import Sequence

import msgspec


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """`_total` fields are counters since the engine process started; the rest are gauges.

    `kv_cache_usage` is the fraction of blocks that live sequences hold, in [0, 1]. `schedule_s_total`,
    `execute_s_total` and `publish_s_total` split the loop's busy seconds. `decode_` is of the steps that carried a
    sequence's next token, `prefill_` of those that carried more than one of a prompt; some are of both. A step's
    seconds are from the end of the step before, or where none was under way from its own beginning. For decode,
    seconds and sequences are of all steps that were under way then, as a sequence waits for all of them.
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
    decode_steps_total: int = 0
    decode_sequences_total: int = 0
    decode_s_total: float = 0.0
    prefill_steps_total: int = 0
    prefill_tokens_total: int = 0
    prefill_s_total: float = 0.0


def merge_stats(stats: Sequence[EngineStats]) -> EngineStats:
    """Of several engines as one: sums, and the fraction of all their blocks that is in use."""
    sums = {name: sum(getattr(each, name) for each in stats) for name in EngineStats.__struct_fields__}
    num_blocks = sums["num_blocks"]
    used = sum(each.kv_cache_usage * each.num_blocks for each in stats)
    return EngineStats(**sums | {"kv_cache_usage": used / num_blocks if num_blocks else 0.0})
