"""What is kept is bounded, in time, in number and in bytes, and who asks for too much is served all the same."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from distllm.server.app import create_app
from distllm.server.resuming.kept_stream import KeptStream
from distllm.server.resuming.kept_streams import KeptStreams
from distllm.server.settings import FrontEndSettings, ResumeSettings
from distllm.server.streaming import Event
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine
from tests.server.live import eventually, served
from tests.server.resuming.conftest import RESUMABLE, begin, follow, read_events
from tests.server.resuming.conftest import Event as SentEvent

LONG = {"model": "tiny", "prompt": "the fox", "stream": True, "max_tokens": 400}


@contextlib.asynccontextmanager
async def serving(
    engine: FakeEngine, tokenizer: Tokenizer, settings: FrontEndSettings, **resuming: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, KeptStreams]]:
    app: FastAPI = create_app(engine, tokenizer, replace(settings, resuming=ResumeSettings(**resuming)))
    streams: KeptStreams = app.state.service.streams
    async with streams, served(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client, streams


@contextlib.asynccontextmanager
async def reading(client: httpx.AsyncClient) -> AsyncIterator[str]:
    """A stream that is under way; yields its id."""
    async with client.stream("POST", "/v1/completions", json=LONG, headers=RESUMABLE) as response:
        lines = response.aiter_lines()
        await anext(lines)
        yield response.headers["x-stream-id"]


async def test_work_ends_when_no_client_comes_back_in_time(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    engine.delay_s = 0.01
    async with serving(engine, byte_level, settings, grace_s=0.2) as (client, streams):
        async with reading(client) as stream_id:
            await asyncio.sleep(0.4)
            assert engine.num_live == 1
        await eventually(lambda: streams.num_kept == 0)
        await eventually(lambda: engine.aborted == [(f"{stream_id}-0", None)])
        assert (await client.get(f"/v1/streams/{stream_id}")).status_code == 404
        assert "distllm_streams_expired_total 1.0" in (await client.get("/metrics")).text
        assert streams.num_bytes == 0


async def test_a_client_that_comes_back_stops_the_clock(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    engine.delay_s = 0.01
    async with serving(engine, byte_level, settings, grace_s=0.3) as (client, _):
        async with reading(client) as stream_id:
            pass
        async with client.stream("GET", f"/v1/streams/{stream_id}") as response:
            await asyncio.sleep(0.6)
            assert engine.num_live == 1
            await response.aclose()


async def test_a_stream_that_has_ended_is_kept_for_the_grace_time(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with serving(engine, byte_level, settings, grace_s=0.2) as (client, streams):
        events = await begin(client)
        assert read_events(await follow(client, events[0].id)) == events[1:]
        await eventually(lambda: streams.num_kept == 0)
        assert (await follow(client, events[0].id)).status_code == 404
        assert "distllm_streams_expired_total 0.0" in (await client.get("/metrics")).text


async def test_a_client_may_end_its_stream(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    engine.delay_s = 0.01
    async with serving(engine, byte_level, settings) as (client, streams):
        async with reading(client) as stream_id:
            assert (await client.delete(f"/v1/streams/{stream_id}")).status_code == 204
            await eventually(lambda: engine.num_live == 0)
        assert (await client.delete(f"/v1/streams/{stream_id}")).status_code == 404
        assert streams.num_kept == streams.num_bytes == 0


async def test_where_no_more_can_be_kept_the_oldest_that_has_ended_goes(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with serving(engine, byte_level, settings, max_streams=2) as (client, streams):
        first, second, third = [await begin(client) for _ in range(3)]
        assert streams.num_kept == 2
        assert (await follow(client, first[0].id)).status_code == 404
        for events in (second, third):
            assert read_events(await follow(client, events[0].id)) == events[1:]


async def test_a_stream_for_which_there_is_no_room_is_an_ordinary_one(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    engine.delay_s = 0.01
    async with serving(engine, byte_level, settings, max_streams=1) as (client, streams), reading(client):
        response = await client.post("/v1/completions", json=LONG | {"max_tokens": 3}, headers=RESUMABLE)
        assert "x-stream-id" not in response.headers
        assert response.text.startswith("data: ")
        assert response.text.endswith("data: [DONE]\n\n")
        assert streams.counts.unkept == 1


KEYS = ("key-one", "key-two")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def is_kept(client: httpx.AsyncClient, events: list[SentEvent], key: str) -> bool:
    return (await follow(client, events[0].id, **bearer(key))).status_code == 200


async def test_a_key_that_holds_most_makes_room_with_its_own_oldest(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    with_keys = replace(settings, api_keys=KEYS)
    async with serving(engine, byte_level, with_keys, max_streams=4) as (client, _):
        client.headers.update(bearer("key-two"))
        other = await begin(client)
        client.headers.update(bearer("key-one"))
        many = [await begin(client) for _ in range(6)]
        assert await is_kept(client, other, "key-two"), "though it is the oldest of all"
        assert [await is_kept(client, events, "key-one") for events in many] == [False] * 3 + [True] * 3


async def test_a_key_takes_its_share_from_one_that_holds_more_also_where_all_run(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    """The stream that loses its place goes on for its client, to its end."""
    engine.delay_s = 0.01
    with_keys = replace(settings, api_keys=KEYS)
    async with serving(engine, byte_level, with_keys, max_streams=2) as (client, streams):
        client.headers.update(bearer("key-one"))
        body = LONG | {"max_tokens": 40}
        async with (
            client.stream("POST", "/v1/completions", json=body, headers=RESUMABLE) as first,
            client.stream("POST", "/v1/completions", json=body, headers=RESUMABLE) as second,
        ):
            refused = await client.post("/v1/completions", json=LONG | {"max_tokens": 2}, headers=RESUMABLE)
            assert refused.headers["x-resumable"] == "false", "its own run, and none holds more"
            assert "no room" in refused.headers["x-resumable-reason"]
            other = await client.post(
                "/v1/completions", json=LONG | {"max_tokens": 2}, headers=RESUMABLE | bearer("key-two")
            )
            assert "x-stream-id" in other.headers
            assert "x-resumable" not in other.headers
            gone = await client.get(f"/v1/streams/{first.headers['x-stream-id']}")
            assert gone.status_code == 404
            assert (await first.aread()).endswith(b"data: [DONE]\n\n")
            assert (await second.aread()).endswith(b"data: [DONE]\n\n")
        assert (await client.get(f"/v1/streams/{second.headers['x-stream-id']}")).status_code == 200
        assert streams.num_kept == 2


async def test_memory_is_shared_by_keys_too(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    with_keys = replace(settings, api_keys=KEYS)
    async with serving(engine, byte_level, with_keys, max_bytes=12_000) as (client, _):
        client.headers.update(bearer("key-two"))
        other = await begin(client)
        client.headers.update(bearer("key-one"))
        await client.post("/v1/completions", json=LONG, headers=RESUMABLE)
        assert await is_kept(client, other, "key-two")


@pytest.mark.parametrize(
    ("fields", "resuming", "reason"),
    [
        ({"n": 65}, {}, "it has 65 choices, and ids of events count 64 at most"),
        ({}, {"grace_s": 0.0}, "this server keeps no streams: --resume-grace-s is 0"),
    ],
)
async def test_a_stream_that_cannot_be_resumed_says_why(
    engine: FakeEngine,
    byte_level: Tokenizer,
    settings: FrontEndSettings,
    fields: dict[str, Any],
    resuming: dict[str, Any],
    reason: str,
) -> None:
    body = LONG | {"max_tokens": 2, "temperature": 1.0} | fields
    async with serving(engine, byte_level, settings, **resuming) as (client, _):
        response = await client.post("/v1/completions", json=body, headers=RESUMABLE)
        assert response.status_code == 200
        assert "x-stream-id" not in response.headers
        assert (response.headers["x-resumable"], response.headers["x-resumable-reason"]) == ("false", reason)
        plain = await client.post("/v1/completions", json=body)
        assert "x-resumable" not in plain.headers, "which was not asked for"


async def test_memory_is_bounded_and_a_stream_that_outgrows_it_goes_on_for_its_client(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with serving(engine, byte_level, settings, max_bytes=20_000) as (client, streams):
        small = await begin(client)
        response = await client.post("/v1/completions", json=LONG, headers=RESUMABLE)
        events = read_events(response)
        assert events[-1].data == "[DONE]"
        assert len(events) == 402
        assert len({event.id for event in events}) == 402
        assert (await follow(client, events[0].id)).status_code == 404
        assert (await follow(client, small[0].id)).status_code == 404
        assert streams.num_kept == streams.num_bytes == 0
        assert streams.counts.unkept == 1


async def test_a_stream_that_outgrows_memory_ends_when_its_client_leaves(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    engine.delay_s = 0.005
    async with serving(engine, byte_level, settings, max_bytes=4_000) as (client, streams):
        async with reading(client):
            await eventually(lambda: streams.num_kept == 0)
            assert engine.num_live == 1
        await eventually(lambda: engine.num_live == 0)


async def test_no_less_is_counted_than_is_held(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with serving(engine, byte_level, settings) as (client, streams):
        stream_id = (await begin(client))[0].id.rpartition("-")[0]
        stream = KeptStream(streams.find(stream_id, "").head, None, 30.0, lambda _: None)
        tracemalloc.start()
        try:
            held_before, _ = tracemalloc.get_traced_memory()
            num_bytes = sum(stream.add([Event(0, b"%0250d" % number)]) for number in range(5000))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 0.8 * num_bytes < held - held_before <= num_bytes == stream.num_bytes


async def test_without_a_grace_time_no_stream_is_resumable(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    async with serving(engine, byte_level, settings, grace_s=0.0) as (client, _):
        response = await client.post("/v1/completions", json=LONG | {"max_tokens": 3}, headers=RESUMABLE)
        assert response.text.startswith("data: ")
