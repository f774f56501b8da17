"""What an engine says its steps took, by what they carried."""

from distllm.engine.interface import SequenceChunk, SequenceId, StepInput
from distllm.scheduler.stats import EngineStats, merge_stats
from distllm.scheduler.step_pace import StepPace


def step(*lengths: int) -> StepInput:
    chunks = [SequenceChunk(SequenceId(number), [1] * length, 0, [], None) for number, length in enumerate(lengths)]
    return StepInput(0, chunks)


def test_steps_of_tokens_and_of_prompts_are_told_apart_and_mixed_ones_are_both() -> None:
    pace = StepPace()
    pace.begin(10.0)
    pace.end_step(step(1, 1, 1), 10.5, num_under_way=1)
    pace.end_step(step(64), 12.5, num_under_way=1)
    pace.end_step(step(1, 32), 13.5, num_under_way=1)
    assert pace.totals() == {
        "decode_steps_total": 2,
        "decode_sequences_total": 4,
        "decode_s_total": 1.5,
        "prefill_steps_total": 2,
        "prefill_tokens_total": 96,
        "prefill_s_total": 3.0,
    }


def test_a_sequence_waits_for_all_steps_that_are_under_way() -> None:
    pace = StepPace()
    pace.begin(0.0)
    for end_s in (0.2, 0.4):
        pace.end_step(step(1, 1), end_s, num_under_way=2)
    totals = pace.totals()
    assert totals["decode_s_total"] / totals["decode_steps_total"] == 0.4
    assert totals["decode_sequences_total"] / totals["decode_steps_total"] == 4


def test_time_without_work_counts_for_no_step() -> None:
    pace = StepPace()
    pace.begin(0.0)
    pace.end_step(step(1), 1.0, num_under_way=1)
    pace.begin(100.0)
    pace.end_step(step(1), 101.0, num_under_way=1)
    assert pace.totals()["decode_s_total"] == 2.0


def test_figures_of_several_engines_add_up_and_their_cache_is_one() -> None:
    merged = merge_stats(
        [
            EngineStats(num_running=1, kv_cache_usage=0.5, num_blocks=100),
            EngineStats(num_running=2, kv_cache_usage=0.0, num_blocks=300),
        ]
    )
    assert (merged.num_running, merged.num_blocks, merged.kv_cache_usage) == (3, 400, 0.125)
    assert merge_stats([EngineStats(), EngineStats()]) == EngineStats()
