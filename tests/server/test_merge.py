"""Several streams are read as one: nothing lost, failures shown, readers ended."""

import asyncio
from types import TracebackType
from typing import Self

import pytest

from distllm.scheduler.messages import SequenceOutput
from distllm.server.merge import MergedStream


class ListStream:
    """Yields outputs with the given token ids; then ends, raises `failure`, or hangs."""

    def __init__(self, token_ids: list[int], failure: Exception | None = None, hangs: bool = False) -> None:
        self._token_ids = list(token_ids)
        self._failure = failure
        self._hangs = hangs

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        await asyncio.sleep(0)
        if self._token_ids:
            return SequenceOutput("r", 0, [self._token_ids.pop(0)])
        if self._hangs:
            await asyncio.Event().wait()
        raise self._failure or StopAsyncIteration

    def abort_sequence(self, index: int) -> None: ...


async def read(merged: MergedStream) -> list[tuple[int, int]]:
    return [(number, output.token_ids[0]) async for number, output in merged]


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_every_output_comes_once_and_in_its_stream_s_order(count: int) -> None:
    streams = [ListStream([number * 100 + step for step in range(number * 40)]) for number in range(count)]
    async with MergedStream(streams) as merged:
        seen = await read(merged)
    for number in range(count):
        expected = [number * 100 + step for step in range(number * 40)]
        assert [token for stream, token in seen if stream == number] == expected


@pytest.mark.parametrize("count", [1, 2])
async def test_a_stream_s_failure_reaches_the_reader(count: int) -> None:
    streams = [ListStream([1, 2], failure=ZeroDivisionError()), *(ListStream([3]) for _ in range(count - 1))]
    async with MergedStream(streams) as merged:
        with pytest.raises(ZeroDivisionError):
            await read(merged)


async def test_leaving_early_ends_the_readers() -> None:
    before = asyncio.all_tasks()
    async with MergedStream([ListStream([1], hangs=True), ListStream([2], hangs=True)]) as merged:
        await anext(merged)
        assert len(asyncio.all_tasks() - before) == 2
    assert asyncio.all_tasks() == before


async def test_a_slow_reader_bounds_what_is_read_ahead() -> None:
    streams = [ListStream(list(range(1000))), ListStream(list(range(1000)))]
    async with MergedStream(streams) as merged:
        await anext(merged)
        for _ in range(500):
            await asyncio.sleep(0)
        assert len(streams[0]._token_ids) + len(streams[1]._token_ids) > 1800
    assert len(asyncio.all_tasks()) == 1, "readers that wait for room must end too"
