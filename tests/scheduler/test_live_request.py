"""The record of a live request is enough to continue it, and its reader sees each sequence end once."""

import asyncio

from distllm.engine.sampling_params import SamplingParams
from distllm.scheduler.live_request import LiveRequest, RequestStream
from distllm.scheduler.messages import EngineRequest, SequenceOutput, SequenceStart


def live_request(num_sequences: int = 1, params: SamplingParams | None = None) -> LiveRequest:
    starts = [SequenceStart(index) for index in range(num_sequences)]
    return LiveRequest(EngineRequest("r", [1, 2], params or SamplingParams(), 7, starts))


def test_a_resumption_holds_the_tokens_of_unfinished_sequences_only() -> None:
    live = live_request(num_sequences=2)
    live.accept(SequenceOutput("r", 0, [5, 6]))
    live.accept(SequenceOutput("r", 1, [8], finish_reason="stop"))
    live.accept(SequenceOutput("r", 0, [9]))
    assert live.resumption().sequences == [SequenceStart(0, [5, 6, 9])]
    assert live.resumption().seed == 7


def test_prompt_logprobs_are_not_asked_for_twice() -> None:
    live = live_request(params=SamplingParams(prompt_logprobs=1))
    assert live.resumption().params.prompt_logprobs == 1
    live.accept(SequenceOutput("r", 0, [5], prompt_logprobs=[]))
    assert live.resumption().params.prompt_logprobs is None


def test_the_first_output_alone_tells_queue_time_and_cached_tokens() -> None:
    live = live_request()
    live.accept(SequenceOutput("r", 0, [5], num_cached_tokens=16, queue_s=0.5))
    live.accept(SequenceOutput("r", 0, [6], num_cached_tokens=32, queue_s=9.0))

    async def read() -> list[SequenceOutput | None]:
        return [await live.next_output(), await live.next_output()]

    first, second = asyncio.run(read())
    assert first is not None
    assert (first.num_cached_tokens, first.queue_s) == (16, 0.5)
    assert second is not None
    assert (second.num_cached_tokens, second.queue_s) == (None, None)


def test_a_failure_ends_each_unfinished_sequence_once() -> None:
    live = live_request(num_sequences=3)
    live.accept(SequenceOutput("r", 1, [4], finish_reason="length"))
    live.fail("gone")
    live.fail("gone again")

    async def read() -> list[SequenceOutput]:
        return [output async for output in RequestStream(live, lambda _: None)]

    outputs = asyncio.run(read())
    ends = [(output.index, output.finish_reason, output.error) for output in outputs]
    assert sorted(ends) == [(0, "error", "gone"), (1, "length", None), (2, "error", "gone")]


def test_leaving_a_stream_early_aborts_the_whole_request() -> None:
    aborts: list[list[int] | None] = []
    live = live_request()
    live.accept(SequenceOutput("r", 0, [5]))

    async def read_one() -> None:
        async with RequestStream(live, aborts.append) as stream:
            async for _ in stream:
                break

    asyncio.run(read_one())
    assert aborts == [None]
    assert live.is_finished


def test_leaving_a_finished_stream_aborts_nothing() -> None:
    aborts: list[list[int] | None] = []
    live = live_request()
    live.accept(SequenceOutput("r", 0, [5], finish_reason="stop"))

    async def read_all() -> int:
        async with RequestStream(live, aborts.append) as stream:
            return len([output async for output in stream])

    assert asyncio.run(read_all()) == 1
    assert aborts == []


def test_ending_the_last_sequence_ends_the_stream() -> None:
    aborts: list[list[int] | None] = []
    live = live_request()

    async def end_it() -> list[SequenceOutput]:
        async with RequestStream(live, aborts.append) as stream:
            live.accept(SequenceOutput("r", 0, [5]))
            stream.abort_sequence(0)
            return [output async for output in stream]

    assert [output.token_ids for output in asyncio.run(end_it())] == [[5]]
    assert aborts == [[0]]
