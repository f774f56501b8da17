"""The list of events: bounded in every direction, whatever peers say."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.coordinator.events import EventLog, printable


def test_the_latest_events_are_kept_the_newest_first() -> None:
    log = EventLog()
    for number in range(250):
        log.note("joined", str(number))
    texts = [event.text for event in log.recent()]
    assert texts == [str(number) for number in range(249, 149, -1)]


def test_recoveries_are_summed() -> None:
    log = EventLog()
    log.note_recovery("a", 0.5)
    log.note_recovery("b", 0.25)
    assert (log.recoveries_total, log.recovery_s_total, log.last_recovery_s) == (2, 0.75, 0.25)
    assert [event.duration_ms for event in log.recent()] == [250.0, 500.0]


@given(st.text(max_size=1000))
def test_a_text_is_one_short_line_whatever_a_peer_says(text: str) -> None:
    line = printable(text)
    assert len(line) <= 300
    assert line.isprintable()
    assert line == text[:300] or not text[:300].isprintable()


async def test_news_that_came_before_the_wait_ends_it() -> None:
    log = EventLog()
    log.note("joined", "")
    async with asyncio.timeout(1):
        await log.wait_for_news(60)
    begun = asyncio.get_running_loop().time()
    await log.wait_for_news(0.05)
    assert asyncio.get_running_loop().time() - begun >= 0.04, "the same news end one wait"
