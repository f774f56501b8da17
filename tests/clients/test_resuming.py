"""A stream that breaks is gone on with where that was asked for and the server can."""

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.clients import AsyncClient, Client, ConnectionLostError, NotFoundError, RetryPolicy
from distllm.clients.calls import Reply
from distllm.clients.resuming import Resumption, resumption_of
from tests.clients.test_clients import Connect, delta_chunk, error, text_chunk

if TYPE_CHECKING:
    from tests.clients.conftest import ScriptedServer

RESUMES = RetryPolicy(resume_within_s=5.0)
STREAM = {"x-stream-id": "cmpl-1"}
TEXTS = ["Once ", "upon ", "a ", "time"]


def frame(number: int, data: Any) -> bytes:
    return f"id: cmpl-1-{number}\ndata: {json.dumps(data)}\n\n".encode()


def frames(make_chunk: Any = text_chunk) -> list[bytes]:
    events = [frame(number, make_chunk(text)) for number, text in enumerate(TEXTS, 1)]
    return [*events, frame(5, make_chunk("", "stop")), b"id: cmpl-1-6\ndata: [DONE]\n\n"]


def reconnections(server: "ScriptedServer") -> list[tuple[str, str, str | None]]:
    return [(seen.method, seen.path, seen.headers.get("last-event-id")) for seen in server.seen[1:]]


@settings(deadline=None)
@given(cut=st.integers(0, sum(map(len, frames()[:-1]))))
def test_a_stream_cut_anywhere_yields_every_chunk_once(cut: int) -> None:
    """The server of this test sends what comes after the event that it is told of."""
    whole = b"".join(frames())
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) == 1:
            return httpx.Response(200, headers=STREAM, content=whole[:cut])
        last_id = request.headers.get("last-event-id", "cmpl-1-0")
        return httpx.Response(200, headers=STREAM, content=b"".join(frames()[int(last_id.rpartition("-")[2]) :]))

    client = Client("http://test", model="tiny", retries=RESUMES)
    client._http._transport = httpx.MockTransport(answer)
    with client:
        assert [chunk.text for chunk in client.complete_stream("x")] == [*TEXTS, ""]
    assert asked[0].headers["x-resumable"] == "true"


def test_both_clients_go_on_after_the_last_event_that_was_whole(connect: Connect, server: "ScriptedServer") -> None:
    first, second, *rest = frames(delta_chunk)
    server.answers(first, second, rest[0][:-5], headers=STREAM, is_cut=True)
    server.answers(status=503, headers={"retry-after": "0"})
    server.answers(*rest, headers=STREAM)
    chunks = connect(server.url, model="tiny", retries=RESUMES).chat_stream([])
    assert [chunk.text for chunk in chunks] == [*TEXTS, ""]
    assert reconnections(server) == [("GET", "/v1/streams/cmpl-1", "cmpl-1-2")] * 2


def test_a_stream_that_broke_before_its_first_event_is_had_from_the_start(
    connect: Connect, server: "ScriptedServer"
) -> None:
    server.answers(headers=STREAM, is_cut=True)
    server.answers(*frames(), headers=STREAM)
    chunks = connect(server.url, model="tiny", retries=RESUMES).complete_stream("x")
    assert [chunk.text for chunk in chunks] == [*TEXTS, ""]
    assert reconnections(server) == [("GET", "/v1/streams/cmpl-1", None)]


def test_without_being_asked_for_nothing_is_resumed(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(frames()[0], headers=STREAM, is_cut=True)
    with pytest.raises(ConnectionLostError):
        list(connect(server.url, model="tiny").complete_stream("x"))
    assert len(server.seen) == 1
    assert "x-resumable" not in server.seen[0].headers


def test_a_server_that_cannot_resume_is_not_asked_to(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(frames()[0], is_cut=True)
    with pytest.raises(ConnectionLostError):
        list(connect(server.url, model="tiny", retries=RESUMES).complete_stream("x"))
    assert len(server.seen) == 1


def test_a_stream_that_is_gone_is_lost_and_the_reason_is_told(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(frames()[0], headers=STREAM, is_cut=True)
    server.answers(error("there is no stream"), status=404)
    with pytest.raises(ConnectionLostError) as caught:
        list(connect(server.url, model="tiny", retries=RESUMES).complete_stream("x"))
    assert isinstance(caught.value.__cause__, NotFoundError)
    assert len(server.seen) == 2


def test_attempts_end_when_no_event_comes_in_time(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(frames()[0], headers=STREAM, is_cut=True)
    server.answers(headers=STREAM, is_cut=True)
    with pytest.raises(ConnectionLostError):
        list(connect(server.url, model="tiny", retries=RetryPolicy(resume_within_s=0.3)).complete_stream("x"))
    assert 2 <= len(server.seen) < 10


def test_delays_grow_to_a_bound_and_begin_anew_once_an_event_has_come() -> None:
    now_s = 100.0
    resumption = Resumption("cmpl-1", 60.0, lambda: now_s)
    resumption.note_break("cmpl-1-4", ConnectionLostError("broke"))
    delays = [resumption.next_delay_s() for _ in range(9)]
    assert delays[0] == 0.0
    assert 0.0 < delays[1] <= 0.1
    assert 1.0 <= delays[-1] <= 2.0
    resumption.note_refusal(Reply(503, {}, b""))
    resumption.note_break("cmpl-1-4", ConnectionLostError("broke"))
    assert resumption.next_delay_s() >= 1.0
    resumption.note_break("cmpl-1-5", ConnectionLostError("broke"))
    assert resumption.next_delay_s() == 0.0
    assert resumption.headers == {"last-event-id": "cmpl-1-5"}


def test_leaving_a_stream_early_ends_it_at_the_server(server: "ScriptedServer") -> None:
    server.answers(*frames()[:1], headers=STREAM, is_endless=True)
    server.answers(status=204)
    with Client(server.url, model="tiny", retries=RESUMES) as client, client.complete_stream("x") as stream:
        next(stream)
    assert reconnections(server) == [("DELETE", "/v1/streams/cmpl-1", None)]


async def test_leaving_an_async_stream_early_ends_it_at_the_server(server: "ScriptedServer") -> None:
    server.answers(*frames()[:1], headers=STREAM, is_endless=True)
    server.answers(status=204)
    async with (
        AsyncClient(server.url, model="tiny", retries=RESUMES) as client,
        await client.complete_stream("x") as stream,
    ):
        await anext(stream)
    assert reconnections(server) == [("DELETE", "/v1/streams/cmpl-1", None)]


def test_a_stream_read_to_its_end_is_not_ended_again(server: "ScriptedServer") -> None:
    server.answers(*frames(), headers=STREAM)
    with Client(server.url, model="tiny", retries=RESUMES) as client, client.complete_stream("x") as stream:
        assert len(list(stream)) == 5
    assert len(server.seen) == 1


def test_only_who_asked_resumes_a_stream_that_could_be() -> None:
    assert resumption_of(httpx.Response(200, headers=STREAM), None) is None
