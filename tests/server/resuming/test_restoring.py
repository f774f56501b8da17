"""A server that ends at any moment leaves files from which the next one makes the same events."""

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.scheduler.messages import EngineRequest
from distllm.scheduler.refusals import EngineUnavailable, QueueFull
from distllm.server.app import create_app
from distllm.server.resuming.kept_streams import KeptStreams
from distllm.server.resuming.stream_head import StreamHead
from distllm.server.resuming.stream_log import StreamFile, StreamLog, StreamLogUnusable, open_log
from distllm.server.settings import FrontEndSettings
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine, FakeStream
from tests.server.live import eventually, served
from tests.server.resuming.conftest import RESUMABLE, Event, begin, by_choice, follow, read_events

FRONT_END = FrontEndSettings(model_names=("tiny",))


@dataclass(frozen=True)
class Kept:
    """A stream that has been read to its end, and the file that it left."""

    events: list[Event]
    file: Path


@contextlib.asynccontextmanager
async def serving(
    tokenizer: Tokenizer, state: Path, engine: FakeEngine | None = None, front_end: FrontEndSettings = FRONT_END
) -> AsyncIterator[tuple[httpx.AsyncClient, KeptStreams]]:
    with open_log(state) as log:
        app = create_app(engine or FakeEngine(600), tokenizer, front_end, log=log)
        streams: KeptStreams = app.state.service.streams
        transport = httpx.ASGITransport(app=app)
        async with streams, httpx.AsyncClient(transport=transport, base_url="http://test", timeout=10) as client:
            yield client, streams


async def kept(tokenizer: Tokenizer, state: Path, path: str = "completions", **fields: Any) -> Kept:
    async with serving(tokenizer, state) as (client, _):
        events = await begin(client, path, **fields)
    (file,) = (state / "streams").iterdir()
    return Kept(events, file)


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"seed": 4, "stream_options": {"include_usage": True}}),
    ("completions", {"n": 3, "logprobs": 2}),
    ("completions", {"prompt": ["the fox", "a dog"], "n": 2, "echo": True, "logprobs": 0}),
    ("completions", {"n": 2, "stop": ["fo", "zzz"]}),
    ("chat/completions", {"n": 2, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}),
]


@pytest.mark.parametrize(("path", "fields"), ASKED)
def test_any_part_of_a_file_and_any_event_lead_to_the_same_rest(
    byte_level: Tokenizer, tmp_path: Path, path: str, fields: dict[str, Any]
) -> None:
    whole = asyncio.run(kept(byte_level, tmp_path / "first", path, **fields))
    content = whole.file.read_bytes()
    head_size = 8 + int.from_bytes(content[:4])

    async def rest_after(event: Event, size: int, state: Path) -> list[Event]:
        (state / "streams").mkdir(mode=0o700)
        (state / "streams" / whole.file.name).write_bytes(content[:size])
        async with serving(byte_level, state) as (client, _):
            return read_events(await follow(client, event.id))

    @given(st.integers(head_size, len(content)), st.integers(1, len(whole.events) - 1))
    @settings(max_examples=20, deadline=None)
    def check(size: int, num_had: int) -> None:
        had = whole.events[:num_had]
        with TemporaryDirectory(dir=tmp_path) as state:
            rest = asyncio.run(rest_after(had[-1], size, Path(state)))
        assert by_choice(had + rest) == by_choice(whole.events)
        assert rest[-1].data == "[DONE]"

    check()


async def test_a_second_restart_goes_on_as_the_first(byte_level: Tokenizer, tmp_path: Path) -> None:
    whole = await kept(byte_level, tmp_path, n=2)
    for _ in range(2):
        os.truncate(whole.file, whole.file.stat().st_size - 60)
        async with serving(byte_level, tmp_path) as (client, streams):
            assert streams.counts.restored == 1
            rest = read_events(await follow(client, whole.events[2].id))
            assert by_choice(whole.events[:3] + rest) == by_choice(whole.events)


async def test_a_key_opens_its_streams_after_a_restart_and_no_other(byte_level: Tokenizer, tmp_path: Path) -> None:
    front_end = replace(FRONT_END, api_keys=("key-one", "key-two"))
    one, other = {"authorization": "Bearer key-one"}, {"authorization": "Bearer key-two"}
    async with serving(byte_level, tmp_path, front_end=front_end) as (client, _):
        client.headers.update(one)
        events = await begin(client)
    async with serving(byte_level, tmp_path, front_end=front_end) as (client, _):
        assert (await follow(client, events[0].id, **other)).status_code == 404
        assert read_events(await follow(client, events[0].id, **one)) == events[1:]


async def test_files_are_for_their_owner_alone_and_go_with_their_stream(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    async with serving(byte_level, tmp_path) as (client, streams):
        events = await begin(client)
        (file,) = (tmp_path / "streams").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_size == streams.num_log_bytes
        await client.delete(f"/v1/streams/{events[0].id.rpartition('-')[0]}")
        assert list((tmp_path / "streams").iterdir()) == []
        assert streams.num_log_bytes == 0


async def test_a_file_that_holds_no_stream_is_removed_and_named(
    byte_level: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = await kept(byte_level, tmp_path)
    content = bytearray(whole.file.read_bytes())
    content[20] ^= 1
    whole.file.write_bytes(content)
    async with serving(byte_level, tmp_path) as (client, _):
        assert (await follow(client, whole.events[0].id)).status_code == 404
    assert not whole.file.exists()
    assert str(whole.file) in caplog.text


async def test_what_follows_a_damaged_record_is_made_again(byte_level: Tokenizer, tmp_path: Path) -> None:
    whole = await kept(byte_level, tmp_path)
    content = bytearray(whole.file.read_bytes())
    content[-300] ^= 1
    whole.file.write_bytes(content)
    async with serving(byte_level, tmp_path) as (client, _):
        assert read_events(await follow(client, whole.events[1].id)) == whole.events[2:]


async def test_zeros_that_a_power_failure_left_are_cut_off(byte_level: Tokenizer, tmp_path: Path) -> None:
    whole = await kept(byte_level, tmp_path)
    size = whole.file.stat().st_size
    os.truncate(whole.file, size - 200)
    os.truncate(whole.file, size + 4000)
    async with serving(byte_level, tmp_path) as (client, _):
        assert read_events(await follow(client, whole.events[1].id)) == whole.events[2:]


async def test_a_full_disk_is_told_once_and_changes_no_stream(
    byte_level: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with serving(byte_level, tmp_path) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr("distllm.server.resuming.stream_log.write_private", no_room)
            one, other = await begin(client), await begin(client)
        assert read_events(await follow(client, one[0].id)) == one[1:]
        assert len(other) == len(one)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0].getMessage()


async def test_a_disk_that_fills_in_the_middle_of_a_stream_loses_nothing_that_cannot_be_made_again(
    byte_level: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, num_writes = os.write, 0

    def write_half_of_the_fourth(descriptor: int, content: bytes) -> int:
        nonlocal num_writes
        num_writes += content[8:9] == b"\x9a"  # a record of an output, an array of ten
        return write(descriptor, content[: len(content) // 2] if num_writes == 4 else content)

    monkeypatch.setattr(os, "write", write_half_of_the_fourth)
    whole = await kept(byte_level, tmp_path)
    monkeypatch.undo()
    assert num_writes == 4
    async with serving(byte_level, tmp_path) as (client, _):
        assert read_events(await follow(client, whole.events[5].id)) == whole.events[6:]


async def test_outputs_that_come_before_there_is_a_file_are_written_to_it(
    byte_level: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_late(log: StreamLog, head: StreamHead) -> StreamFile | None:
        time.sleep(0.05)
        return begin_file(log, head)

    begin_file = StreamLog.begin
    monkeypatch.setattr(StreamLog, "begin", begin_late)
    engine = FakeEngine(600)
    engine.delay_s = 0.01
    async with serving(byte_level, tmp_path, engine) as (client, _):
        events = await begin(client, prompt=["the fox", "a dog"])
    async with serving(byte_level, tmp_path, engine) as (client, _):
        rest = read_events(await follow(client, events[2].id))
    assert by_choice(events[:3] + rest) == by_choice(events)
    assert len(engine.requests) == 2, "nothing was left to compute"


async def test_a_server_that_ends_in_order_leaves_its_unfinished_streams_to_the_next(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    engine = FakeEngine(600)
    engine.delay_s = 0.01
    body = {"model": "tiny", "prompt": "the fox", "stream": True, "max_tokens": 300}
    with open_log(tmp_path) as log:
        app = create_app(engine, byte_level, FRONT_END, log=log)
        async with (
            served(app) as url,
            httpx.AsyncClient(base_url=url) as client,
            app.state.service.streams,
            client.stream("POST", "/v1/completions", json=body, headers=RESUMABLE) as response,
        ):
            lines = response.aiter_lines()
            last_id = (await anext(lines)).removeprefix("id: ")
            engine.state, engine.fail_after = "draining", 20
            rest = [line async for line in lines]
    assert not [line for line in rest if "error" in line or "DONE" in line]
    async with serving(byte_level, tmp_path) as (client, _):
        events = read_events(await follow(client, last_id))
    assert events[-1].data == "[DONE]"
    assert len(events) == 301


async def test_another_model_does_not_go_on_with_the_tokens_of_the_one_before(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    whole = await kept(byte_level, tmp_path)
    os.truncate(whole.file, whole.file.stat().st_size - 200)
    async with serving(byte_level, tmp_path, front_end=FrontEndSettings(model_names=("other",))) as (client, _):
        events = read_events(await follow(client, whole.events[0].id))
    assert "started again with another model" in events[-2].data
    assert events[-1].data == "[DONE]"


async def test_a_stream_waits_for_an_engine_that_is_starting(byte_level: Tokenizer, tmp_path: Path) -> None:
    whole = await kept(byte_level, tmp_path)
    os.truncate(whole.file, whole.file.stat().st_size - 200)
    engine = StartingEngine(600)
    async with serving(byte_level, tmp_path, engine) as (client, streams):
        assert engine.requests == []
        engine.state = "ready"
        engine.is_settled.set()
        assert read_events(await follow(client, whole.events[0].id)) == whole.events[1:]
        assert streams.num_kept == 1


async def test_a_stream_that_is_ended_before_the_engine_is_ready_is_never_submitted(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    whole = await kept(byte_level, tmp_path, prompt=["the fox", "a dog"])
    os.truncate(whole.file, whole.file.stat().st_size - 500)
    engine = StartingEngine(600)
    async with serving(byte_level, tmp_path, engine) as (client, streams):
        assert (await client.delete(f"/v1/streams/{whole.file.stem}")).status_code == 204
        engine.state = "ready"
        engine.is_settled.set()
        assert len(await begin(client)) == 14
        assert len(engine.requests) == 1
        assert streams.num_kept == 1


async def test_a_full_queue_makes_a_stream_of_before_wait(byte_level: Tokenizer, tmp_path: Path) -> None:
    whole = await kept(byte_level, tmp_path)
    os.truncate(whole.file, whole.file.stat().st_size - 200)
    engine = StartingEngine(600)
    engine.refusals = [QueueFull(576, 0.01), QueueFull(576, 0.01)]
    engine.state = "ready"
    engine.is_settled.set()
    async with serving(byte_level, tmp_path, engine) as (client, _):
        assert read_events(await follow(client, whole.events[0].id)) == whole.events[1:]
    assert engine.refusals == []


async def test_another_order_of_sums_is_told(
    byte_level: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = await kept(byte_level, tmp_path)
    os.truncate(whole.file, whole.file.stat().st_size - 200)
    engine = FakeEngine(600)
    engine.executor_info = replace(engine.executor_info, numerics="other")
    with open_log(tmp_path) as log:
        assert log.numerics == "fake"
    async with serving(byte_level, tmp_path, engine) as (client, _):
        assert read_events(await follow(client, whole.events[0].id)) == whole.events[1:]
    assert "may differ by rounding" in caplog.text


async def test_a_route_that_the_next_server_has_not_is_no_hindrance(byte_level: Tokenizer, tmp_path: Path) -> None:
    """Begun on the pipeline that its client wanted, by a server that had one."""
    over_peers = replace(FRONT_END, route="pipeline")
    async with serving(byte_level, tmp_path, front_end=over_peers) as (client, _):
        body = {"model": "tiny", "max_tokens": 12, "stream": True, "prompt": "the fox"}
        response = await client.post("/v1/completions", json=body, headers=RESUMABLE | {"x-route": "pipeline"})
        assert response.headers["x-route"] == "pipeline"
        events = read_events(response)
    (file,) = (tmp_path / "streams").iterdir()
    os.truncate(file, file.stat().st_size - 200)
    async with serving(byte_level, tmp_path) as (client, _):
        assert read_events(await follow(client, events[0].id)) == events[1:]


async def test_an_engine_that_cannot_start_leaves_the_streams_to_the_next(
    byte_level: Tokenizer, tmp_path: Path
) -> None:
    whole = await kept(byte_level, tmp_path)
    os.truncate(whole.file, whole.file.stat().st_size - 200)
    engine = StartingEngine(600)
    async with serving(byte_level, tmp_path, engine) as (_, streams):
        engine.is_settled.set()
        await eventually(lambda: streams.find(whole.file.stem, "").is_ended)
    async with serving(byte_level, tmp_path) as (client, _):
        assert read_events(await follow(client, whole.events[0].id)) == whole.events[1:]


def test_a_directory_belongs_to_one_server(tmp_path: Path) -> None:
    with open_log(tmp_path), pytest.raises(StreamLogUnusable, match="another --state"), open_log(tmp_path):
        raise AssertionError("it was opened twice")


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamLogUnusable, match=r"file.*name another directory"), open_log(tmp_path / "file"):
        raise AssertionError("it was opened")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StreamLogUnusable, match="may be written by any user"), open_log(tmp_path / "open"):
        raise AssertionError("it was opened")


class StartingEngine(FakeEngine):
    """Settles when it is told to: ready where its state then says so. First it refuses as it is told."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.state = "starting"
        self.is_settled = asyncio.Event()
        self.refusals: list[Exception] = []

    async def wait_ready(self) -> None:
        await self.is_settled.wait()
        if self.state != "ready":
            raise EngineUnavailable("the engine cannot start")

    def submit(self, request: EngineRequest) -> FakeStream:
        if self.refusals:
            raise self.refusals.pop()
        return super().submit(request)
