"""How the wire suite asks and reads: raw HTTP, so that nothing is smoothed over by a client."""

import json
from typing import Any

import httpx

PROMPT = "Once upon a time"


def complete(http: httpx.Client, model: str, **fields: Any) -> Any:
    """A completion that must succeed; greedy unless told otherwise."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | fields
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    return response.json()


def stream(http: httpx.Client, model: str, **fields: Any) -> list[Any]:
    """The chunks of a streamed completion."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True} | fields
    return read_events(http.post("/v1/completions", json=body))


def chat(http: httpx.Client, model: str, **fields: Any) -> Any:
    """A chat completion that must succeed."""
    response = post_chat(http, model, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def chat_stream(http: httpx.Client, model: str, **fields: Any) -> list[Any]:
    """The chunks of a streamed chat completion."""
    return read_events(post_chat(http, model, stream=True, **fields))


def post_chat(http: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0} | fields
    return http.post("/v1/chat/completions", json=body)


def post_raw(http: httpx.Client, body: str | bytes) -> httpx.Response:
    """POST /v1/completions with a body as it is, which need not be JSON."""
    return http.post("/v1/completions", content=body, headers={"content-type": "application/json"})


def read_events(response: httpx.Response) -> list[Any]:
    """Data of every event; the stream must end with one [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert lines.count("data: [DONE]") == 1
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def check_error(response: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The response is OpenAI's error object; returns its message. `param` and `code` are checked when given."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return str(error["message"])
