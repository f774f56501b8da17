"""What a request saves because another had the same beginning."""

from tests.scheduler.harness import Harness, prompt_scores


def first_chunk_start(engine: Harness) -> int:
    """How many tokens the only chunk of the next step takes as computed."""
    (chunk,) = engine.step().chunks
    return chunk.num_computed_before


def test_a_later_request_takes_the_blocks_of_an_earlier_one() -> None:
    engine = Harness(block_size=4)
    engine.add("a", range(14), max_tokens=1)
    engine.run()
    request = engine.add("b", [*range(9), 50, 51], max_tokens=3)
    assert first_chunk_start(engine) == 8
    engine.run()
    engine.assert_undisturbed(request)
    assert engine.outputs_of("b")[0].num_cached_tokens == 8
    stats = engine.scheduler.stats()
    assert (stats.prefix_query_tokens_total, stats.prefix_hit_tokens_total) == (25, 8)


def test_blocks_of_a_running_request_are_shared() -> None:
    engine = Harness(block_size=4, num_blocks=8)
    engine.add("a", range(12), max_tokens=9)
    engine.step()
    engine.add("b", range(12), max_tokens=4)
    (_, chunk) = engine.step().chunks
    assert (chunk.num_computed_before, len(chunk.token_ids)) == (8, 4)
    assert engine.scheduler.stats().kv_cache_usage == 5 / 8


def test_answers_are_cached_as_prompts_are() -> None:
    engine = Harness(block_size=4)
    engine.add("a", range(6), max_tokens=7)
    engine.run()
    engine.add("b", [*range(6), *engine.tokens_of("a"), 40], max_tokens=1)
    assert first_chunk_start(engine) == 12


def test_the_last_token_is_computed_even_when_all_blocks_are_cached() -> None:
    engine = Harness(block_size=4)
    engine.add("a", range(8), max_tokens=1)
    engine.run()
    request = engine.add("b", range(8), max_tokens=2)
    assert first_chunk_start(engine) == 4
    engine.run()
    engine.assert_undisturbed(request)


def test_salts_do_not_share() -> None:
    engine = Harness(block_size=4)
    engine.add("a", range(8), max_tokens=1, cache_salt="alice")
    engine.run()
    engine.add("b", range(8), max_tokens=1, cache_salt="bob")
    assert first_chunk_start(engine) == 0


def test_with_caching_off_nothing_is_shared() -> None:
    engine = Harness(block_size=4, enable_prefix_caching=False)
    for name in ("a", "b"):
        engine.add(name, range(8), max_tokens=1)
        assert first_chunk_start(engine) == 0
    assert engine.outputs_of("b")[0].num_cached_tokens == 0


def test_a_prompt_to_be_scored_takes_no_cached_block() -> None:
    engine = Harness(block_size=4)
    engine.add("a", range(12), max_tokens=1)
    engine.run()
    request = engine.add("b", range(12), max_tokens=2, prompt_logprobs=0)
    assert first_chunk_start(engine) == 0
    engine.run()
    assert engine.outputs_of("b")[0].prompt_logprobs == prompt_scores(request)


def test_a_step_that_has_not_been_applied_offers_no_blocks() -> None:
    engine = Harness(block_size=4, max_in_flight=2)
    engine.add("a", range(12), max_tokens=3)
    engine.submit()
    request = engine.add("b", range(12), max_tokens=3)
    step = engine.submit()
    assert step is not None
    assert step.chunks[0].num_computed_before == 0
    engine.run()
    engine.assert_undisturbed(request)


def test_what_a_failed_chunk_computed_is_never_found() -> None:
    engine = Harness(block_size=4)
    engine.add("a", range(8), max_tokens=1)
    engine.submit()
    engine.finish(fails=[0])
    engine.add("b", range(9), max_tokens=1)
    assert first_chunk_start(engine) == 0
