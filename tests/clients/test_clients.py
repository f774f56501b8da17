"""Both clients against a scripted server: what they send, what they return, what they raise."""

import json
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from distllm.clients import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConnectionLostError,
    InvalidCallError,
    NotFoundError,
    NotReadyError,
    RequestTimeoutError,
    RetryPolicy,
    ServerError,
    ServerUnreachableError,
    ServiceUnavailableError,
    StreamError,
    TooManyRequestsError,
    UnexpectedReplyError,
)
from distllm.clients.results import Health, Usage

if TYPE_CHECKING:
    from tests.clients.conftest import ScriptedServer

Connect = Callable[..., Any]

COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "tiny",
    "choices": [{"text": " there", "index": 0, "finish_reason": "length", "logprobs": None}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    "a_field_of_the_future": {},
}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def events(*values: object, done: bool = True) -> tuple[bytes, ...]:
    frames = [f"data: {json.dumps(value)}\n\n".encode() for value in values]
    return (*frames, b"data: [DONE]\n\n") if done else tuple(frames)


def text_chunk(text: str, finish_reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "cmpl-1", "choices": [{"text": text, "index": index, "finish_reason": finish_reason}]}


def delta_chunk(content: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"id": "chat-1", "choices": [{"delta": delta, "index": 0, "finish_reason": finish_reason}]}


def error(message: str, **fields: object) -> bytes:
    return body({"error": {"message": message, "type": "t", "param": None, "code": None} | fields})


def test_a_completion_is_sent_and_read_under_the_wires_names(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body(COMPLETION))
    answer = connect(server.url, api_key="secret").complete("hello", max_tokens=1, stop=["x"], seed=7)
    assert answer.text == " there"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=1, total_tokens=4)
    [seen] = server.seen
    assert (seen.method, seen.path) == ("POST", "/v1/completions")
    assert seen.body == {"model": "tiny", "prompt": "hello", "max_tokens": 1, "stop": ["x"], "seed": 7}
    assert seen.headers["authorization"] == "Bearer secret"


def test_a_dry_run_is_sent_as_its_completion_and_read(connect: Connect, server: "ScriptedServer") -> None:
    prediction = {"meets_target": True, "queue_s": 0, "ttft_s": 0.5, "tpot_s": 0.1, "total_s": 2, "machine_s": 4}
    there = {"route": "pipeline", "unavailable": None, "prediction": prediction, "num_machines": 2}
    here = {"route": "local", "unavailable": "it is away", "prediction": None}
    answer = {"route": "pipeline", "reason": "so", "prompt_tokens": 3, "max_tokens": 16, "routes": [here, there]}
    server.answers(body(answer | {"a_field_of_the_future": {}}))
    explanation = connect(server.url).explain_route("hello", max_tokens=16)
    assert explanation.chosen is explanation.routes[1]
    assert explanation.routes[1].prediction.tpot_s == 0.1
    [seen] = server.seen
    assert (seen.path, seen.body) == ("/v1/route/explain", {"model": "tiny", "prompt": "hello", "max_tokens": 16})


def test_a_chat_answer_is_read(connect: Connect, server: "ScriptedServer") -> None:
    message = {"role": "assistant", "content": "four"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    server.answers(body({"id": "chat-1", "choices": choices}))
    answer = connect(server.url).chat([{"role": "user", "content": "2+2"}], temperature=0)
    assert answer.text == "four"
    assert server.seen[0].path == "/v1/chat/completions"
    assert server.seen[0].body["messages"] == [{"role": "user", "content": "2+2"}]


def test_a_streamed_completion_yields_typed_chunks(connect: Connect, server: "ScriptedServer") -> None:
    usage = {"id": "cmpl-1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    server.answers(b": ping\n\n", *events(text_chunk("a"), text_chunk("b", "stop"), usage))
    chunks = list(connect(server.url).complete_stream("x", include_usage=True))
    assert [chunk.text for chunk in chunks] == ["a", "b", ""]
    assert chunks[-1].usage == Usage(prompt_tokens=1, completion_tokens=2)
    assert server.seen[0].body["stream"] is True
    assert server.seen[0].body["stream_options"] == {"include_usage": True}


def test_a_streamed_chat_yields_typed_chunks(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(*events(delta_chunk(""), delta_chunk("hi"), delta_chunk(None, "stop")))
    chunks = list(connect(server.url).chat_stream([{"role": "user", "content": "x"}]))
    assert "".join(chunk.text for chunk in chunks) == "hi"
    assert "stream_options" not in server.seen[0].body


def test_a_stream_split_inside_a_character_is_whole(connect: Connect, server: "ScriptedServer") -> None:
    frame = f"data: {json.dumps(text_chunk('né', 'stop'), ensure_ascii=False)}\r\n\r\n".encode()
    cut = frame.index("é".encode()) + 1
    server.answers(frame[:cut], frame[cut:], b"data: [DONE]\r\n\r\n")
    assert [chunk.text for chunk in connect(server.url).complete_stream("x")] == ["né"]


def test_an_error_inside_a_stream_is_raised_after_what_came(connect: Connect, server: "ScriptedServer") -> None:
    frame = {"error": {"message": "the engine was lost", "type": "server_error", "param": None, "code": 500}}
    server.answers(*events(text_chunk("a"), frame))
    with pytest.raises(StreamError, match="the engine was lost") as caught:
        list(connect(server.url).complete_stream("x"))
    assert (caught.value.status, caught.value.type, caught.value.code) == (None, "server_error", "500")


def test_a_stream_that_ends_in_the_middle_is_an_error(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(*events(text_chunk("a"), done=False))
    with pytest.raises(ConnectionLostError, match="middle of the answer"):
        list(connect(server.url).complete_stream("x"))


def test_a_connection_cut_inside_a_stream_is_an_error(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(*events(text_chunk("a"), done=False), is_cut=True)
    with pytest.raises(ConnectionLostError):
        list(connect(server.url).complete_stream("x"))


def test_a_stream_without_done_is_whole_once_all_choices_finished(
    connect: Connect, server: "ScriptedServer"
) -> None:
    chunks = [text_chunk("a"), text_chunk("b", index=1), text_chunk("", "stop"), text_chunk("", "stop", 1)]
    server.answers(*events(*chunks, done=False))
    assert len(list(connect(server.url).complete_stream("x", n=2))) == 4


def test_a_choice_that_never_finished_makes_the_stream_an_error(connect: Connect, server: "ScriptedServer") -> None:
    chunks = [text_chunk("a"), text_chunk("b", index=1), text_chunk("", "stop")]
    server.answers(*events(*chunks, done=False))
    with pytest.raises(ConnectionLostError):
        list(connect(server.url).complete_stream("x", n=2))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (404, NotFoundError),
        (413, BadRequestError),
        (429, TooManyRequestsError),
        (500, ServerError),
        (503, ServiceUnavailableError),
    ],
)
def test_each_status_has_its_exception(
    connect: Connect, server: "ScriptedServer", status: int, kind: type[APIError]
) -> None:
    refusal = error("no", param="top_p", code="bad_value")
    server.answers(refusal, status=status, headers={"retry-after": "60"})
    client = connect(server.url)
    for call in (client.complete, client.complete_stream):
        with pytest.raises(kind, match="no") as caught:
            list(call("x"))
        raised = caught.value
        assert (raised.status, raised.type, raised.param, raised.code) == (status, "t", "top_p", "bad_value")
        assert raised.retry_after_s == 60.0


def test_a_full_queue_is_retried_after_the_time_it_asks_for(connect: Connect, server: "ScriptedServer") -> None:
    for _ in range(2):
        server.answers(error("full"), status=429, headers={"retry-after": "0"})
    server.answers(body(COMPLETION))
    assert connect(server.url).complete("x").text == " there"
    assert len(server.seen) == 3


def test_a_stream_is_retried_before_it_begins(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(error("starting"), status=503, headers={"retry-after": "0"})
    server.answers(*events(text_chunk("a", "stop")))
    assert [chunk.text for chunk in connect(server.url).complete_stream("x")] == ["a"]


def test_retries_can_be_turned_off(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(error("full"), status=429, headers={"retry-after": "0"})
    with pytest.raises(TooManyRequestsError):
        connect(server.url, retries=RetryPolicy(max_retries=0)).complete("x")
    assert len(server.seen) == 1


def test_no_server_is_said_with_its_address(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match=url):
            connect(url).complete("x")


def test_a_silent_server_times_out(connect: Connect, server: "ScriptedServer") -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestTimeoutError, match=r"silent for 0\.1 s"):
            connect(url, timeout_s=0.1).complete("x")


def test_another_services_reply_is_named_as_such(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(b"<html>")
    with pytest.raises(UnexpectedReplyError, match="not a Completion"):
        connect(server.url).complete("x")


def test_another_services_error_page_gives_the_message(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(b"Bad Gateway", status=502)
    with pytest.raises(ServerError, match="Bad Gateway"):
        connect(server.url).complete("x")


def test_a_redirect_is_an_error(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(b"over there", status=307, headers={"location": "/elsewhere"})
    with pytest.raises(APIError, match="over there"):
        connect(server.url).complete("x")


def test_nan_is_refused_before_it_is_sent(connect: Connect, server: "ScriptedServer") -> None:
    with pytest.raises(InvalidCallError, match="JSON compliant"):
        connect(server.url).complete("x", temperature=math.nan)
    assert server.seen == []


def test_the_first_listed_model_is_used_where_none_is_given(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body({"object": "list", "data": [{"id": "first"}, {"id": "second"}]}))
    server.answers(body(COMPLETION))
    client = connect(server.url, model=None)
    client.complete("x")
    client.complete("y")
    assert [seen.path for seen in server.seen] == ["/v1/models", "/v1/completions", "/v1/completions"]
    assert server.seen[-1].body["model"] == "first"


def test_an_empty_list_of_models_is_an_error(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body({"data": []}))
    with pytest.raises(UnexpectedReplyError, match="no model"):
        connect(server.url, model=None).complete("x")


def test_text_and_tokens_are_converted_both_ways(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body({"tokens": [1, 2], "count": 2, "max_model_len": 64}))
    server.answers(body({"prompt": "hello"}))
    client = connect(server.url)
    tokens = client.tokenize("hello", add_special_tokens=False)
    assert (tokens.tokens, tokens.count, tokens.max_model_len) == ([1, 2], 2, 64)
    assert client.detokenize([1, 2]).prompt == "hello"
    assert [seen.path for seen in server.seen] == ["/tokenize", "/detokenize"]
    assert server.seen[0].body["add_special_tokens"] is False


def test_an_unready_server_is_a_result_and_not_an_error(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body({"status": "loading"}), status=503)
    assert connect(server.url).health() == Health(is_ready=False, details={"status": "loading"})


def test_waiting_ends_when_the_server_is_ready(connect: Connect, server: "ScriptedServer") -> None:
    for _ in range(2):
        server.answers(body({"status": "loading"}), status=503)
    server.answers(body({"status": "ready"}))
    assert connect(server.url).wait_until_ready(timeout_s=10).is_ready
    assert len(server.seen) == 3


def test_waiting_ends_with_what_the_server_said_last(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body({"status": "loading"}), status=503)
    with pytest.raises(NotReadyError, match="loading"):
        connect(server.url).wait_until_ready(timeout_s=0.01)


def test_waiting_does_not_outlast_an_error_it_cannot_cure(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(error("no such path"), status=404)
    with pytest.raises(NotFoundError):
        connect(server.url).wait_until_ready(timeout_s=60)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://\n", "http://host:99999999", ""]
)
def test_a_bad_address_is_refused_with_the_form_that_works(connect: Connect, url: str) -> None:
    with pytest.raises(InvalidCallError, match="http://host:port"):
        connect(url)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(connect: Connect, key: str) -> None:
    with pytest.raises(InvalidCallError, match="printable ASCII") as caught:
        connect("http://127.0.0.1:9", api_key=key)
    assert key not in str(caught.value)


def test_a_closed_client_says_so(connect: Connect, server: "ScriptedServer") -> None:
    client = connect(server.url)
    client.close()
    with pytest.raises(InvalidCallError, match="the client has been closed"):
        client.complete("x")


def test_a_reply_that_cannot_be_unpacked_is_unexpected(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(b"not gzip", headers={"content-encoding": "gzip"})
    with pytest.raises(UnexpectedReplyError, match="cannot be read"):
        connect(server.url).complete("x")


@pytest.mark.parametrize("reply", [b"\xff", b"[" * 100_000, b'{"error": "\xff"}'])
@pytest.mark.parametrize("status", [200, 400])
def test_bytes_that_are_no_json_are_a_client_error(
    connect: Connect, server: "ScriptedServer", reply: bytes, status: int
) -> None:
    server.answers(reply, status=status)
    with pytest.raises(ClientError):
        connect(server.url).complete("x")


def test_the_address_of_the_official_sdk_works_too(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(body(COMPLETION))
    connect(f"{server.url}/v1/").complete("x")
    assert server.seen[0].path == "/v1/completions"


def test_every_exception_is_a_client_error() -> None:
    kinds = (APIError, ConnectionLostError, NotReadyError, RequestTimeoutError, ServerUnreachableError)
    assert all(issubclass(kind, ClientError) for kind in kinds)


def test_health_without_a_body_is_read_by_its_status(connect: Connect, server: "ScriptedServer") -> None:
    server.answers(b"")
    assert connect(server.url).health() == Health(is_ready=True, details={})
    assert server.seen[0].path == "/health"
