"""Reads a whole event stream into its data payloads."""

import json
from typing import Any

import httpx


def payloads(response: httpx.Response) -> list[Any]:
    """Decoded data of every event; the closing [DONE] is checked and left out."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event for event in response.text.split("\n\n") if event and not event.startswith(":")]
    assert all(event.startswith("data: ") for event in events)
    assert [event for event in events if event == "data: [DONE]"] == ["data: [DONE]"]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
