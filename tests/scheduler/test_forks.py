"""Several sequences of one request: the prompt is computed once and shared."""

from distllm.engine.interface import StepInput
from tests.scheduler.harness import Harness, prompt_scores, undisturbed


def shape(step: StepInput) -> list[tuple[int, int]]:
    """(tokens computed before, tokens computed) of each chunk."""
    return [(chunk.num_computed_before, len(chunk.token_ids)) for chunk in step.chunks]


def test_forks_compute_only_the_last_token_of_the_prompt() -> None:
    engine = Harness(block_size=4)
    request = engine.add("a", range(10), n=3, max_tokens=4)
    assert shape(engine.step()) == [(0, 10)]
    step = engine.step()
    assert shape(step) == [(10, 1), (9, 1), (9, 1)]
    assert len(step.block_copies) == 2, "the leader goes on in place"
    engine.run()
    engine.assert_undisturbed(request)


def test_forks_of_full_blocks_copy_the_last_one() -> None:
    engine = Harness(block_size=4)
    request = engine.add("a", range(8), n=2, max_tokens=4)
    engine.step()
    step = engine.step()
    assert shape(step) == [(8, 1), (7, 1)]
    assert len(step.block_copies) == 1
    engine.run()
    engine.assert_undisturbed(request)


def test_forks_share_all_other_blocks() -> None:
    engine = Harness(block_size=4, num_blocks=16)
    engine.add("a", range(30), n=5, max_tokens=2)
    engine.step()
    engine.step()
    used = {block for chunk in engine.executor.steps[-1].chunks for block in chunk.block_table}
    assert len(used) == 7 + 5


def test_the_last_fork_of_an_ended_leader_writes_in_place() -> None:
    engine = Harness(block_size=4)
    request = engine.add("a", range(10), n=3, max_tokens=1)
    engine.step()
    assert len(engine.step().block_copies) == 1
    engine.assert_undisturbed(request)


def test_forks_outlive_a_leader_that_ends_with_its_first_token() -> None:
    engine = Harness(block_size=4, enable_prefix_caching=False)
    request = engine.add("a", range(10), n=4, max_tokens=1)
    assert shape(engine.step()) == [(0, 10)]
    assert shape(engine.step()) == [(9, 1)] * 3
    engine.assert_undisturbed(request)
    assert not engine.scheduler.has_work


def test_forks_without_a_seat_wait_and_take_the_cached_prompt() -> None:
    engine = Harness(block_size=4, max_num_seqs=2)
    request = engine.add("a", range(10), n=4, max_tokens=2)
    engine.step()
    assert shape(engine.step()) == [(10, 1), (9, 1)]
    assert shape(engine.step()) == [(10, 1), (8, 2)]
    engine.run()
    engine.assert_undisturbed(request)


def test_when_the_leader_is_aborted_in_its_prompt_a_fork_takes_over() -> None:
    engine = Harness(max_num_batched_tokens=4)
    request = engine.add("a", range(10), n=3, max_tokens=2)
    engine.step()
    engine.abort("a", [0])
    engine.run()
    assert engine.outputs_of("a", 0) == []
    for index in (1, 2):
        assert (engine.tokens_of("a", index), "length") == undisturbed(request, index, 200)


def test_when_the_leader_fails_in_its_prompt_a_fork_takes_over() -> None:
    engine = Harness()
    request = engine.add("a", range(10), n=2, max_tokens=2)
    engine.submit()
    engine.finish(fails=[0])
    engine.run()
    assert engine.end_of("a", 0) == "error"
    assert (engine.tokens_of("a", 1), "length") == undisturbed(request, 1, 200)


def test_a_fork_aborted_before_the_prompt_is_computed_never_runs() -> None:
    engine = Harness(max_num_batched_tokens=8)
    engine.add("a", range(10), n=3, max_tokens=2)
    engine.step()
    engine.abort("a", [1])
    engine.run()
    assert engine.outputs_of("a", 1) == []
    assert engine.end_of("a", 2) == "length"


def test_prompt_logprobs_come_on_sequence_0_alone() -> None:
    engine = Harness()
    request = engine.add("a", range(10), n=2, max_tokens=2, prompt_logprobs=0)
    engine.run()
    assert engine.outputs_of("a", 0)[0].prompt_logprobs == prompt_scores(request)
    assert all(output.prompt_logprobs is None for output in engine.outputs_of("a", 1))


def test_with_max_tokens_0_every_sequence_ends_when_the_prompt_is_computed() -> None:
    engine = Harness()
    engine.add("a", range(10), n=3, max_tokens=0)
    engine.step()
    assert [engine.end_of("a", index) for index in range(3)] == ["length"] * 3
    assert not engine.scheduler.has_work


def test_resubmitted_forks_share_the_prompt_and_compute_their_own_tokens() -> None:
    engine = Harness(block_size=4)
    probe = engine.add("probe", range(50, 60), n=3, max_tokens=8)
    known = {index: undisturbed(probe, index, 200)[0][: 2 * index] for index in range(3)}
    engine.run()
    request = engine.add("a", range(50, 60), outputs=known, max_tokens=8, cache_salt="apart")
    assert shape(engine.step()) == [(0, 10)]
    assert shape(engine.step()) == [(10, 1), (10, 2), (10, 4)]
    engine.run()
    engine.assert_undisturbed(request)


def test_every_sequence_tells_what_the_prompt_took_from_the_cache() -> None:
    engine = Harness(block_size=4)
    engine.add("warm", range(10), max_tokens=1)
    engine.run()
    engine.add("a", range(10), n=2, max_tokens=2)
    engine.run()
    assert [engine.outputs_of("a", index)[0].num_cached_tokens for index in range(2)] == [8, 8]
    assert engine.scheduler.stats().prefix_query_tokens_total == 20
