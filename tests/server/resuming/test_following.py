"""A client that comes back gets exactly the events that it does not have."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from distllm.server.app import create_app
from distllm.server.settings import FrontEndSettings, ResumeSettings
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine
from tests.server.live import eventually, served
from tests.server.resuming.conftest import RESUMABLE, begin, by_choice, follow, read_events
from tests.wire.wire import check_error

ASKED: list[tuple[str, dict[str, Any]]] = [
    ("completions", {}),
    ("completions", {"n": 3, "logprobs": 2, "seed": 4}),
    ("completions", {"prompt": ["the fox", "a dog"], "n": 2, "echo": True, "logprobs": 0}),
    ("completions", {"n": 2, "stop": ["fo", "zzz"], "stream_options": {"include_usage": True}}),
    ("chat/completions", {"stream_options": {"include_usage": True}}),
    ("chat/completions", {"n": 3, "logprobs": True, "top_logprobs": 2}),
]
ONE_KEY = {"authorization": "Bearer key-one"}
OTHER_KEY = {"authorization": "Bearer key-two"}


@pytest.mark.parametrize(("path", "fields"), ASKED)
async def test_any_event_leads_to_the_events_after_it(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    events = await begin(client, path, **fields)
    assert len({event.id for event in events}) == len(events)
    for number, event in enumerate(events[:-1], 1):
        assert read_events(await follow(client, event.id)) == events[number:]


@pytest.mark.parametrize(("path", "fields"), ASKED)
async def test_a_resumable_stream_says_what_any_other_says(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    events = await begin(client, path, **fields)
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "the fox"}
    body = {"model": "tiny", "max_tokens": 12, "stream": True} | prompt | fields
    plain = (await client.post(f"/v1/{path}", json=body)).text.removesuffix("\n\n").split("\n\n")
    assert [shape(event.data) for event in events] == [shape(frame.removeprefix("data: ")) for frame in plain]


def shape(data: str) -> str:
    """Without what no two answers share: the id and the second."""
    return data.split('"model"', 1)[-1]


async def test_an_event_may_be_named_in_a_post_with_or_without_a_body(client: httpx.AsyncClient) -> None:
    events = await begin(client)
    headers = {"last-event-id": events[3].id}
    for path in ("completions", "chat/completions"):
        assert read_events(await client.post(f"/v1/{path}", headers=headers)) == events[4:]
    body = {"model": "tiny", "prompt": "the fox", "stream": True}
    assert read_events(await client.post("/v1/completions", headers=headers, json=body)) == events[4:]


async def test_without_an_event_all_are_sent_and_after_the_last_there_are_none(client: httpx.AsyncClient) -> None:
    events = await begin(client)
    stream_id = events[0].id.rpartition("-")[0]
    assert read_events(await client.get(f"/v1/streams/{stream_id}")) == events
    assert (await follow(client, events[-1].id)).status_code == 204


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        "cmpl-1",
        "cmpl-" + "0" * 32,
        "cmpl-" + "0" * 32 + "--1",
        "cmpl-" + "0" * 32 + "-1.",
        "cmpl-" + "g" * 32 + "-1",
    ],
)
async def test_an_id_that_is_none_is_refused_and_the_header_named(client: httpx.AsyncClient, bad: str) -> None:
    message = check_error(
        await client.post("/v1/completions", headers={"last-event-id": bad}), 400, "Last-Event-ID"
    )
    assert message.startswith("Last-Event-ID must be")


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1).map(str.strip).filter(bool))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
async def test_garbage_for_an_id_is_never_the_server_s_fault(app: FastAPI, text: str) -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/completions", headers={"last-event-id": text})
        assert "send the id of the last event" in check_error(response, 400, "Last-Event-ID")


@pytest.mark.parametrize(("counts", "what"), [("99", "not sent"), ("1.1", "must count 1 choices")])
async def test_an_id_of_no_event_of_the_stream_is_refused(
    client: httpx.AsyncClient, counts: str, what: str
) -> None:
    stream_id = (await begin(client))[0].id.rpartition("-")[0]
    message = check_error(await follow(client, f"{stream_id}-{counts}"), 400, "Last-Event-ID")
    assert what in message
    assert message.endswith("or GET /v1/streams/{x-stream-id} without it for all events")


async def test_two_that_replay_at_once_both_get_all(app: FastAPI, engine: FakeEngine) -> None:
    engine.delay_s = 0.01
    body = {"model": "tiny", "prompt": "the fox", "stream": True, "max_tokens": 40}
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/completions", json=body, headers=RESUMABLE) as response:
            lines = response.aiter_lines()
            last_id = (await anext(lines)).removeprefix("id: ")
            one, other = await asyncio.gather(follow(client, last_id), follow(client, last_id))
            assert [line async for line in lines][-2] == "data: [DONE]"
        assert read_events(one) == read_events(other)
        assert len(read_events(one)) == 41
        assert len(engine.requests) == 1, "nothing is generated again"


async def test_an_id_of_another_stream_is_refused(client: httpx.AsyncClient) -> None:
    one, other = await begin(client), await begin(client)
    response = await client.get(
        f"/v1/streams/{one[0].id.rpartition('-')[0]}", headers={"last-event-id": other[0].id}
    )
    check_error(response, 400, "Last-Event-ID")


async def test_an_unknown_stream_and_another_key_s_are_not_told_apart(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    app = create_app(engine, byte_level, replace(settings, api_keys=("key-one", "key-two")))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ONE_KEY) as client:
        events = await begin(client)
        unknown_id = f"cmpl-{'0' * 32}-1"
        unknown = check_error(await follow(client, unknown_id), 404, "Last-Event-ID", "stream_not_found")
        assert unknown.endswith("send the request again, without Last-Event-ID")
        foreign = check_error(await follow(client, events[0].id, **OTHER_KEY), 404, code="stream_not_found")
        assert foreign == unknown.replace("cmpl-" + "0" * 32, events[0].id.rpartition("-")[0])
        stream_url = f"/v1/streams/{events[0].id.rpartition('-')[0]}"
        assert (await client.delete(stream_url, headers=OTHER_KEY)).status_code == 404
        assert (await follow(client, events[0].id, authorization="Bearer wrong")).status_code == 401
        assert read_events(await follow(client, events[0].id)) == events[1:]


async def test_streams_are_resumable_only_where_that_is_asked_for(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    body = {"model": "tiny", "prompt": "the fox", "stream": True}
    for are_all, header, is_resumable in ((False, None, False), (True, None, True), (True, "false", False)):
        app = create_app(engine, byte_level, replace(settings, resuming=ResumeSettings(are_all_resumable=are_all)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            headers = {} if header is None else {"x-resumable": header}
            response = await client.post("/v1/completions", json=body, headers=headers)
            assert response.text.startswith("id: ") == is_resumable
            assert ("x-stream-id" in response.headers) == is_resumable
            bad = await client.post("/v1/completions", json=body, headers={"x-resumable": "maybe"})
            check_error(bad, 400, "x-resumable")


async def test_a_refused_request_leaves_nothing_behind(
    client: httpx.AsyncClient, app: FastAPI, engine: FakeEngine
) -> None:
    engine.refusal = RuntimeError("no")
    body = {"model": "tiny", "prompt": "the fox", "stream": True}
    assert (await client.post("/v1/completions", json=body, headers=RESUMABLE)).status_code == 500
    assert app.state.service.streams.num_kept == app.state.service.streams.num_bytes == 0


async def test_a_failure_is_an_event_like_any_other(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 3
    events = await begin(client)
    assert '"generation_failed"' in events[-2].data
    assert read_events(await follow(client, events[1].id)) == events[2:]


async def test_a_stream_goes_on_while_its_client_is_away(app: FastAPI, engine: FakeEngine) -> None:
    engine.delay_s = 0.02
    body = {"model": "tiny", "prompt": "the fox", "stream": True, "max_tokens": 40, "n": 2}
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/completions", json=body, headers=RESUMABLE) as response:
            stream_id = response.headers["x-stream-id"]
            lines = response.aiter_lines()
            last_id = (await anext(lines)).removeprefix("id: ")
        await eventually(lambda: app.state.service.streams.find(stream_id, "").is_read is False)
        live = await follow(client, last_id)
        whole = read_events(await client.get(f"/v1/streams/{stream_id}"))
        assert engine.num_live == 0
        assert engine.aborted == []
    assert read_events(live) == whole[1:]
    assert {choice: len(data) for choice, data in by_choice(whole).items()} == {0: 42, 1: 41}


async def test_openai_s_client_reads_a_resumable_stream_and_its_comments(
    engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings
) -> None:
    engine.delay_s = 0.05
    app = create_app(engine, byte_level, replace(settings, keep_alive_s=0.01))
    body = {"model": "tiny", "prompt": "the fox", "max_tokens": 4, "stream": True}
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        text = (await client.post("/v1/completions", json=body, headers=RESUMABLE)).text
        assert ": keep-alive\n" in text.split("data: ", 1)[1]
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
            stream = await sdk.completions.create(
                model="tiny", prompt="the fox", stream=True, max_tokens=4, extra_headers=RESUMABLE
            )
            chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert len(chunks) == text.count("data: {")
