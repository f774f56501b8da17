"""What a request gets, and how steps are put together."""

import pytest

from distllm.engine.interface import ChunkOutput, StepOutput, TokenLogprobs
from distllm.engine.sampling_params import sequence_seed
from tests.scheduler.harness import NOW_S, Harness, prompt_scores, undisturbed
from tests.scheduler.slot_executor import kv_of_tokens, score


def sizes(engine: Harness) -> list[int]:
    """Tokens of each chunk of the next step."""
    return [len(chunk.token_ids) for chunk in engine.step().chunks]


def test_a_lone_request_gets_the_tokens_of_its_prefix() -> None:
    engine = Harness()
    request = engine.add("a", range(10), max_tokens=5)
    engine.run()
    engine.assert_undisturbed(request)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = Harness(max_num_batched_tokens=8)
    request = engine.add("a", range(20), max_tokens=2)
    assert [sizes(engine) for _ in range(4)] == [[8], [8], [4], [1]]
    engine.assert_undisturbed(request)


def test_only_the_chunk_that_reaches_the_last_known_token_samples() -> None:
    engine = Harness(max_num_batched_tokens=8)
    engine.add("a", range(12), max_tokens=2)
    samples = [engine.step().chunks[0].sample for _ in range(3)]
    assert [sample and sample.index for sample in samples] == [None, 0, 1]


def test_running_sequences_get_their_token_before_waiting_ones_get_theirs() -> None:
    engine = Harness(max_num_batched_tokens=8)
    engine.add("a", range(4), max_tokens=5)
    assert sizes(engine) == [4]
    engine.add("b", range(20), max_tokens=5)
    assert sizes(engine) == [1, 7]
    engine.add("c", range(3), max_tokens=5)
    assert sizes(engine) == [1, 7]
    assert sizes(engine) == [1, 2, 3], "4 of its 20 tokens came from a"


def test_equal_priorities_are_served_in_order_of_arrival() -> None:
    engine = Harness(max_num_seqs=1)
    engine.add("late", [1], max_tokens=1, arrival_s=20.0)
    engine.add("early", [2], max_tokens=1, arrival_s=10.0)
    engine.run()
    assert [output.request_id for output in engine.outputs] == ["early", "late"]


def test_no_more_sequences_run_than_there_are_seats() -> None:
    engine = Harness(max_num_seqs=2)
    for name in ("a", "b", "c"):
        engine.add(name, [1, 2, 3], max_tokens=2)
    assert sizes(engine) == [3, 3]
    stats = engine.scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 1)
    assert sizes(engine) == [1, 1]
    assert sizes(engine) == [3]


def test_a_sequence_whose_token_is_pending_is_not_scheduled_again() -> None:
    engine = Harness(max_in_flight=2)
    engine.add("a", [1, 2, 3], max_tokens=3)
    assert engine.submit() is not None
    assert engine.submit() is None
    engine.finish()
    assert engine.submit() is not None


def test_chunks_of_one_prompt_may_be_under_way_at_once() -> None:
    engine = Harness(max_in_flight=3, max_num_batched_tokens=4)
    request = engine.add("a", range(12), max_tokens=3)
    assert [engine.submit() is not None for _ in range(3)] == [True, True, True]
    engine.run()
    engine.assert_undisturbed(request)


def test_a_stop_token_ends_the_sequence_and_is_its_last_token() -> None:
    engine = Harness()
    expected, _ = undisturbed(engine.add("probe", range(5), max_tokens=6), 0, 200)
    for name, field in (("stop", "stop_token_ids"), ("eos", "eos_token_ids")):
        engine.add(name, range(5), max_tokens=6, **{field: (expected[3],)})
        engine.run()
        assert engine.tokens_of(name) == expected[:4]
        last = engine.outputs_of(name)[-1]
        assert (last.finish_reason, last.stop_token_id) == ("stop", expected[3])


def test_a_stop_token_within_min_tokens_does_not_end_the_sequence() -> None:
    engine = Harness()
    expected, _ = undisturbed(engine.add("probe", range(5), max_tokens=6), 0, 200)
    for min_tokens, num_tokens in ((3, 4), (4, 6)):
        name = f"at least {min_tokens}"
        engine.add(name, range(5), max_tokens=6, min_tokens=min_tokens, stop_token_ids=(expected[3],))
        engine.run()
        assert len(engine.tokens_of(name)) == num_tokens


def test_a_stop_token_in_the_prompt_does_not_end_the_sequence() -> None:
    engine = Harness()
    engine.add("a", [7, 8, 9], max_tokens=2, stop_token_ids=(7, 8, 9))
    engine.run()
    assert engine.end_of("a") == "length"


def test_a_stop_token_at_the_limit_counts_as_stop() -> None:
    engine = Harness()
    expected, _ = undisturbed(engine.add("probe", range(5), max_tokens=3), 0, 200)
    engine.add("a", range(5), max_tokens=3, stop_token_ids=(expected[2],))
    engine.run()
    assert engine.end_of("a") == "stop"


def test_a_sequence_ends_where_the_context_does() -> None:
    engine = Harness(max_model_len=12)
    request = engine.add("a", range(9), max_tokens=50)
    engine.run()
    assert len(engine.tokens_of("a")) == 3
    engine.assert_undisturbed(request, max_len=12)


def test_with_max_tokens_0_the_prompt_is_scored_and_nothing_sampled() -> None:
    engine = Harness(max_num_batched_tokens=4)
    request = engine.add("a", range(10), max_tokens=0, prompt_logprobs=0)
    engine.run()
    (output,) = engine.outputs
    assert (output.token_ids, output.finish_reason) == ([], "length")
    assert output.prompt_logprobs == prompt_scores(request)
    assert all(chunk.sample is None for step in engine.executor.steps for chunk in step.chunks)


def test_prompt_logprobs_of_all_chunks_come_once_with_the_first_output() -> None:
    engine = Harness(max_num_batched_tokens=4)
    request = engine.add("a", range(10), max_tokens=3, prompt_logprobs=0)
    engine.run()
    assert [output.prompt_logprobs for output in engine.outputs] == [prompt_scores(request), None, None]


def test_a_prompt_of_one_token_has_no_logprobs_to_tell() -> None:
    engine = Harness()
    engine.add("a", [3], max_tokens=1, prompt_logprobs=0)
    engine.run()
    assert engine.outputs[0].prompt_logprobs == []


def test_logprobs_run_beside_tokens_when_asked_for() -> None:
    engine = Harness()
    engine.add("a", [3, 4], max_tokens=1, logprobs=0)
    engine.add("b", [3, 4], max_tokens=1)
    engine.run()
    (token_id,) = engine.tokens_of("a")
    assert engine.outputs_of("a")[0].logprobs == [TokenLogprobs(token_id, score(kv_of_tokens([3, 4])))]
    assert engine.outputs_of("b")[0].logprobs is None


def test_a_penalised_sequence_shows_its_history_and_others_do_not() -> None:
    engine = Harness()
    engine.add("a", [3, 4], max_tokens=2, presence_penalty=0.5)
    engine.add("b", [3, 4], max_tokens=2)
    engine.step()
    step = engine.submit()
    assert step is not None
    with_history, without = (chunk.sample for chunk in step.chunks)
    assert with_history is not None
    assert list(with_history.history) == [3, 4, *engine.tokens_of("a")]
    assert with_history.num_prompt_tokens == 2
    assert without is not None
    assert list(without.history) == []


def test_each_sequence_samples_with_its_own_seed_and_counts_its_tokens() -> None:
    engine = Harness()
    engine.add("a", [3, 4], n=2, seed=99, max_tokens=3)
    engine.run()
    draws = [
        (chunk.sample.seed, chunk.sample.index)
        for step in engine.executor.steps
        for chunk in step.chunks
        if chunk.sample is not None
    ]
    assert sorted(draws) == sorted((sequence_seed(99, i), index) for i in range(2) for index in range(3))


def test_the_first_output_says_how_long_the_request_waited() -> None:
    engine = Harness(max_num_seqs=1)
    engine.add("a", [1], max_tokens=1, arrival_s=NOW_S - 2)
    engine.add("b", [1], max_tokens=2, arrival_s=NOW_S - 1)
    engine.step()
    engine.now_s += 10
    engine.run()
    assert [output.queue_s for output in engine.outputs] == [2.0, 11.0, None]


def test_an_error_ends_its_sequence_alone() -> None:
    engine = Harness()
    engine.add("a", [1, 2], max_tokens=3)
    request = engine.add("b", [1, 2, 3], max_tokens=3)
    engine.submit()
    engine.finish(fails=[0])
    engine.run()
    (output,) = engine.outputs_of("a")
    assert (output.token_ids, output.finish_reason, output.error) == ([], "error", "failed by the test")
    engine.assert_undisturbed(request)


def test_a_chunk_that_yields_no_token_though_asked_ends_with_an_error() -> None:
    engine = Harness()
    engine.add("a", [1], max_tokens=3)
    step = engine.scheduler.schedule()
    assert step is not None
    nothing = StepOutput(step.step_id, [ChunkOutput(step.chunks[0].sequence_id, None)])
    (output,) = engine.scheduler.apply(step, nothing)
    assert output.finish_reason == "error"
    assert not engine.scheduler.has_work


def test_abort_frees_every_block_at_once() -> None:
    engine = Harness(max_num_seqs=2)
    engine.add("a", range(30), n=3, max_tokens=20)
    engine.step()
    engine.step()
    engine.add("waiting", range(9))
    engine.abort("a")
    assert engine.scheduler.stats().kv_cache_usage == 0.0
    engine.abort("waiting")
    assert not engine.scheduler.has_work
    assert engine.scheduler.schedule() is None


def test_abort_while_the_step_runs_frees_the_blocks_and_nothing_follows() -> None:
    engine = Harness(max_in_flight=2, num_blocks=4, block_size=4)
    engine.add("a", range(13), max_tokens=3)
    engine.submit()
    engine.abort("a")
    request = engine.add("b", range(50, 63), max_tokens=3)
    engine.run()
    assert engine.outputs_of("a") == []
    engine.assert_undisturbed(request)


def test_abort_of_one_sequence_leaves_the_others() -> None:
    engine = Harness()
    request = engine.add("a", range(6), n=3, max_tokens=6)
    engine.step()
    engine.step()
    engine.abort("a", [1])
    num_outputs = len(engine.outputs_of("a", 1))
    engine.run()
    assert len(engine.outputs_of("a", 1)) == num_outputs
    for index in (0, 2):
        assert (engine.tokens_of("a", index), "length") == undisturbed(request, index, 200)


def test_abort_of_what_is_not_live_is_ignored() -> None:
    engine = Harness()
    engine.abort("never")
    request = engine.add("a", [1], max_tokens=1)
    engine.abort("a", [5])
    engine.run()
    engine.abort("a")
    engine.assert_undisturbed(request)


@pytest.mark.parametrize("num_known", [1, 4, 7])
def test_a_resubmitted_request_goes_on_with_the_tokens_of_an_undisturbed_run(num_known: int) -> None:
    engine = Harness(block_size=4)
    expected, _ = undisturbed(engine.add("probe", range(9), n=2, max_tokens=8), 1, 200)
    request = engine.add("a", range(9), outputs={1: expected[:num_known]}, max_tokens=8)
    engine.run()
    assert engine.tokens_of("a", 1) == expected[num_known:]
    engine.assert_undisturbed(request)


def test_a_resubmitted_sequence_that_was_complete_ends_without_another_token() -> None:
    engine = Harness()
    engine.add("a", range(9), outputs={0: [5, 6]}, max_tokens=2)
    engine.run()
    assert engine.tokens_of("a") == []
    assert engine.end_of("a") == "length"


def test_counters_tell_prompt_and_generated_tokens_once() -> None:
    engine = Harness(max_num_batched_tokens=4)
    engine.add("a", range(10), n=2, max_tokens=3)
    engine.run()
    stats = engine.scheduler.stats()
    assert stats.prompt_tokens_total == 10
    assert stats.generation_tokens_total == 6
    assert stats.steps_total == len(engine.executor.steps)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks == 64


def test_a_request_without_a_time_of_arrival_arrives_when_it_is_added() -> None:
    engine = Harness(max_num_seqs=1)
    engine.add("a", [1], max_tokens=1, arrival_s=0.0)
    engine.now_s += 3
    engine.run()
    assert [output.queue_s for output in engine.outputs] == [3.0]


def test_sequences_are_divided_among_the_steps_that_may_be_under_way() -> None:
    engine = Harness(max_in_flight=3, num_shares=3)
    requests = [engine.add(f"r{number}", [number, 1], max_tokens=4) for number in range(7)]
    steps = [engine.submit() for _ in range(3)]
    assert [len(step.chunks) for step in steps if step is not None] == [3, 3, 1]
    engine.run()
    for request in requests:
        engine.assert_undisturbed(request)
