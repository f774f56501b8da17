"""Clients that leave: in the middle of their body, of an answer, or with a second request behind the first. The
server goes on as if they had never been."""

import time
from typing import Any

import httpx
import pytest

from tests.wire.raw import connect, request, request_head
from tests.wire.wire import complete

NUM_CLIENTS = 8


@pytest.fixture
def endless(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "Once upon a time", "max_tokens": 1000, "temperature": 1, "seed": 1}


def test_bodies_that_are_abandoned_leave_the_server_well(http: httpx.Client, model: str) -> None:
    for _ in range(NUM_CLIENTS):
        with connect(http) as connection:
            connection.sendall(request_head(http, "Content-Length: 1000") + b'{"model": ')
    assert complete(http, model)["choices"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_answers_that_are_abandoned_leave_the_server_well(
    http: httpx.Client, model: str, endless: dict[str, Any], is_streamed: bool
) -> None:
    for _ in range(NUM_CLIENTS):
        with connect(http) as connection:
            connection.sendall(request(http, endless | {"stream": is_streamed}))
            if is_streamed:
                assert connection.recv(64).split(b" ")[1] == b"200"
    assert complete(http, model)["choices"]


@pytest.mark.extension
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("num_requests", [1, 2])
def test_what_a_client_that_leaves_had_asked_for_stops_running(
    http: httpx.Client, endless: dict[str, Any], is_streamed: bool, num_requests: int
) -> None:
    asked = endless | {"stream": is_streamed, "n": 8, "ignore_eos": True}
    with connect(http) as connection:
        connection.sendall(request(http, asked) * num_requests)
        assert wait_for_running(http, lambda running: running > 0)
    assert wait_for_running(http, lambda running: running == 0, timeout_s=1.0)


def wait_for_running(http: httpx.Client, is_right: Any, timeout_s: float = 10.0) -> bool:
    """Whether the number of running sequences, as /metrics tells it, becomes right in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        lines = http.get("/metrics").text.splitlines()
        running = sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))
        if is_right(running):
            return True
    return False
