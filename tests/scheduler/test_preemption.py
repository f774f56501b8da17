"""Who makes way when blocks or seats run out, and that everyone ends all the same."""

from tests.scheduler.harness import Harness, prompt_scores


def running(engine: Harness) -> list[int]:
    """First known token of every chunk of the next step, which tells the tests' prompts apart."""
    step = engine.submit()
    assert step is not None
    firsts = [chunk.token_ids[0] for chunk in step.chunks]
    engine.finish()
    return firsts


def test_the_newest_sequence_makes_way_and_comes_back() -> None:
    engine = Harness(block_size=4, num_blocks=8)
    requests = [engine.add(name, [i] * 11, max_tokens=12) for i, name in enumerate(("old", "new"))]
    engine.run()
    assert engine.scheduler.stats().preemptions_total > 0
    ends = [output.request_id for output in engine.outputs if output.finish_reason]
    assert ends == ["old", "new"]
    for request in requests:
        engine.assert_undisturbed(request)


def test_a_lower_priority_makes_way_before_a_newer_arrival() -> None:
    engine = Harness(block_size=4, num_blocks=8)
    engine.add("low", [1] * 11, max_tokens=12, priority=5)
    engine.add("high", [2] * 11, max_tokens=12)
    engine.run()
    ends = [output.request_id for output in engine.outputs if output.finish_reason]
    assert ends == ["high", "low"]


def test_a_smaller_priority_number_is_served_first() -> None:
    engine = Harness(max_num_seqs=1)
    for name, priority in (("low", 9), ("middle", 0), ("high", -3)):
        engine.add(name, [1], max_tokens=1, priority=priority)
    engine.run()
    assert [output.request_id for output in engine.outputs] == ["high", "middle", "low"]


def test_a_higher_priority_takes_the_seat_of_a_lower_one() -> None:
    engine = Harness(max_num_seqs=2)
    requests = [
        engine.add("first", [1] * 3, max_tokens=6),
        engine.add("low", [2] * 3, max_tokens=6, priority=1),
    ]
    assert running(engine) == [1, 2]
    requests.append(engine.add("urgent", [3] * 3, max_tokens=2, priority=-1))
    assert running(engine)[0] == 3
    assert engine.scheduler.stats().preemptions_total == 1
    engine.run()
    ends = [output.request_id for output in engine.outputs if output.finish_reason]
    assert ends == ["urgent", "first", "low"]
    for request in requests:
        engine.assert_undisturbed(request)


def test_equal_priorities_do_not_take_seats_from_each_other() -> None:
    engine = Harness(max_num_seqs=1)
    engine.add("new", [1], max_tokens=4, arrival_s=20.0)
    engine.step()
    engine.add("older", [2], max_tokens=4, arrival_s=10.0)
    engine.run()
    assert engine.scheduler.stats().preemptions_total == 0
    assert engine.end_of("older") == "length"


def test_nobody_is_preempted_for_a_request_that_would_not_fit_even_so() -> None:
    engine = Harness(block_size=4, num_blocks=10)
    engine.add("first", [1] * 20, max_tokens=3)
    engine.add("low", [2] * 4, max_tokens=3, priority=1)
    engine.step()
    engine.add("urgent", [3] * 28, max_tokens=3, priority=0)
    engine.step()
    assert engine.scheduler.stats().preemptions_total == 0
    engine.run()
    assert engine.end_of("urgent") == "length"


def test_a_waiting_request_is_not_overtaken_by_a_smaller_one() -> None:
    engine = Harness(block_size=4, num_blocks=10)
    engine.add("first", [1] * 20, max_tokens=4)
    engine.step()
    engine.add("large", [2] * 30, max_tokens=2)
    engine.add("small", [3] * 2, max_tokens=2)
    assert len(engine.step().chunks) == 1
    engine.run()
    firsts = [output.request_id for output in engine.outputs if output.queue_s is not None]
    assert firsts == ["first", "large", "small"]


def test_a_request_waits_until_running_ones_can_compute_what_they_know() -> None:
    engine = Harness(block_size=4, num_blocks=12, max_num_batched_tokens=8)
    engine.add("long", range(33), max_tokens=9)
    for _ in range(5):
        engine.step()
    engine.add("short", range(100, 109), max_tokens=6)
    assert running(engine) == [engine.tokens_of("long")[0]], "of 3 blocks left it will need one"
    engine.run()
    assert engine.scheduler.stats().preemptions_total == 0


def test_a_sequence_under_way_is_never_preempted() -> None:
    engine = Harness(block_size=4, num_blocks=6, max_in_flight=2, max_num_batched_tokens=11)
    old = engine.add("old", [1] * 11, max_tokens=9)
    engine.submit()
    new = engine.add("new", [2] * 8, max_tokens=9)
    engine.submit()
    engine.finish()
    engine.submit()
    assert engine.scheduler.stats().preemptions_total == 0
    engine.run()
    engine.assert_undisturbed(old)
    engine.assert_undisturbed(new)


def test_a_lone_sequence_that_needs_the_whole_pool_ends() -> None:
    engine = Harness(block_size=4, num_blocks=5)
    request = engine.add("a", range(3), max_tokens=18)
    engine.run()
    engine.assert_undisturbed(request)


def test_forks_of_a_prompt_that_fills_the_pool_end_one_after_another() -> None:
    engine = Harness(block_size=4, num_blocks=4)
    request = engine.add("a", range(12), n=3, max_tokens=5)
    engine.run()
    engine.assert_undisturbed(request)


def test_scores_of_a_prompt_survive_a_preemption_in_its_middle() -> None:
    engine = Harness(block_size=4, num_blocks=10, max_num_batched_tokens=7)
    low = engine.add("low", range(30), max_tokens=2, priority=1, prompt_logprobs=0)
    engine.step()
    engine.step()
    engine.add("urgent", range(100, 120), max_tokens=6)
    engine.run()
    assert engine.scheduler.stats().preemptions_total == 1
    assert engine.outputs_of("low")[0].prompt_logprobs == prompt_scores(low)
    resumed = [step.chunks[0].num_computed_before for step in engine.executor.steps]
    assert resumed[:2] == [0, 7]
    assert 12 in resumed, "of the 14 tokens scored, three blocks came from the cache"
    engine.assert_undisturbed(low)


def test_many_requests_in_a_tiny_pool_all_end_with_their_own_tokens() -> None:
    engine = Harness(block_size=4, num_blocks=7, max_num_batched_tokens=5, max_in_flight=2)
    requests = [engine.add(f"r{i}", range(i % 3, 9), max_tokens=9, priority=i % 2) for i in range(12)]
    engine.run()
    assert engine.scheduler.stats().preemptions_total > 0
    for request in requests:
        engine.assert_undisturbed(request)
