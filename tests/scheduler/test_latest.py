"""Following a value that is replaced."""

import asyncio

import pytest

from distllm.scheduler.latest import Latest


async def test_a_follower_sees_the_present_value_and_each_it_is_in_time_for() -> None:
    latest = Latest(1)
    values = latest.follow()
    assert await anext(values) == 1
    latest.replace(2)
    assert await anext(values) == 2
    latest.replace(2)
    assert await anext(values) == 2


async def test_a_slow_follower_misses_values_and_not_the_newest() -> None:
    latest = Latest(1)
    values = latest.follow()
    await anext(values)
    for value in (2, 3, 4):
        latest.replace(value)
    assert await anext(values) == 4


async def test_several_follow_at_once() -> None:
    latest = Latest(1)
    followers = [latest.follow() for _ in range(3)]
    for follower in followers:
        await anext(follower)
    waiting = [asyncio.ensure_future(anext(follower)) for follower in followers]
    await asyncio.sleep(0)
    latest.replace(2)
    assert await asyncio.gather(*waiting) == [2, 2, 2]


async def test_what_came_before_the_end_is_still_seen() -> None:
    latest = Latest(1)
    values = latest.follow()
    await anext(values)
    latest.replace(2)
    latest.close()
    assert [value async for value in values] == [2]
    assert [value async for value in latest.follow()] == [2]


async def test_the_end_wakes_who_waits() -> None:
    latest = Latest(1)
    values = latest.follow()
    await anext(values)
    waiting = asyncio.ensure_future(anext(values))
    await asyncio.sleep(0)
    latest.close()
    with pytest.raises(StopAsyncIteration):
        await waiting
