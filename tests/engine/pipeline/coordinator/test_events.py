"""The list of events: bounded in every direction, whatever peers say."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.coordinator.event_file import EventFile
from distllm.engine.pipeline.coordinator.events import EventLog, printable
from tests.engine.pipeline.waiting import until


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
    assert line == text[:300] or not text[:300].isprintable() or line.endswith(" …")


def test_a_text_that_is_too_long_ends_with_a_whole_word() -> None:
    assert printable("all of it", 9) == "all of it"
    assert printable("not all of it", 12) == "not all …"
    assert printable("x" * 400) == "x" * 298 + " …"


async def test_news_that_came_before_the_wait_ends_it() -> None:
    log = EventLog()
    log.note("joined", "")
    async with asyncio.timeout(1):
        await log.wait_for_news(60)
    begun = asyncio.get_running_loop().time()
    await log.wait_for_news(0.05)
    assert asyncio.get_running_loop().time() - begun >= 0.04, "the same news end one wait"


async def test_the_events_of_an_engine_are_told_by_the_next_one(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    before = EventLog(file.read())
    keeping = asyncio.create_task(before.keep(file, pause_s=0.0))
    for number in range(120):
        before.note("joined", str(number), "peer-1")
    before.note_recovery("a -> b", 0.5)
    await until(lambda: file.read()[-1:] == before.recent()[:1])
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    after = EventLog(file.read())
    assert after.recent() == before.recent()
    after.note("joined", "again")
    assert len(after.recent()) == 100


def test_a_file_of_events_that_is_damaged_is_no_hindrance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events.json").write_bytes(b'[{"time_s": 1')
    assert EventFile(tmp_path).read() == []
    assert "cannot be read" in caplog.text
    EventFile(tmp_path / "nowhere").write([])
    assert "cannot be written" in caplog.text
