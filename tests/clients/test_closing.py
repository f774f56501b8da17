"""A reader that leaves: the server must notice."""

from typing import TYPE_CHECKING

import pytest

from distllm.clients import AsyncClient, Client, ConnectionLostError

if TYPE_CHECKING:
    from tests.clients.conftest import ScriptedServer

FRAME = b'data: {"id": "1", "choices": [{"text": "a", "index": 0, "finish_reason": null}]}\n\n'


def test_leaving_a_stream_closes_its_connection(server: "ScriptedServer") -> None:
    server.answers(FRAME, is_endless=True)
    with Client(server.url, model="tiny") as client:
        with client.complete_stream("x") as stream:
            assert next(stream).text == "a"
        assert server.client_left.wait(10)


async def test_leaving_an_async_stream_closes_its_connection(server: "ScriptedServer") -> None:
    server.answers(FRAME, is_endless=True)
    async with AsyncClient(server.url, model="tiny") as client:
        async with await client.complete_stream("x") as stream:
            assert (await anext(stream)).text == "a"
        assert server.client_left.wait(10)


def test_a_stream_that_was_closed_is_a_client_error(server: "ScriptedServer") -> None:
    server.answers(FRAME, is_endless=True)
    with Client(server.url, model="tiny") as client:
        stream = client.complete_stream("x")
        stream.close()
        with pytest.raises(ConnectionLostError, match="closed"):
            next(stream)


def test_a_stream_read_to_its_end_leaves_the_connection_for_the_next(server: "ScriptedServer") -> None:
    last = FRAME.replace(b"null", b'"stop"')
    server.answers(last, b"data: [DONE]\n\n")
    with Client(server.url, model="tiny") as client:
        for _ in range(3):
            assert [chunk.text for chunk in client.complete_stream("x")] == ["a"]
    assert len(server.seen) == 3
    assert server.num_connections == 1
