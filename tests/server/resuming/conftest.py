"""Streams of the app over the fake engine, begun as resumable, and what their events say."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

RESUMABLE = {"x-resumable": "true"}


@dataclass(frozen=True)
class Event:
    """One event as it came."""

    id: str
    data: str

    @property
    def choice(self) -> int:
        """Which choice it is of; what is of none counts with the first."""
        chunk = {} if self.data == "[DONE]" else json.loads(self.data)
        return int(chunk["choices"][0]["index"]) if chunk.get("choices") else 0


def read_events(response: httpx.Response) -> list[Event]:
    """The events of a whole response, all of which must have an id."""
    assert response.status_code == 200, response.text
    return list(_events(response.text))


def _events(text: str) -> Iterator[Event]:
    for frame in text.removesuffix("\n\n").split("\n\n"):
        *comments, name, data = frame.split("\n")
        assert all(line.startswith(":") for line in comments), frame
        assert name.startswith("id: "), frame
        assert data.startswith("data: "), frame
        yield Event(name.removeprefix("id: "), data.removeprefix("data: "))


def by_choice(events: list[Event]) -> dict[int, list[str]]:
    """The data of each choice's events, in their order."""
    found: dict[int, list[str]] = {}
    for event in events:
        found.setdefault(event.choice, []).append(event.data)
    return found


async def begin(client: httpx.AsyncClient, path: str = "completions", **fields: Any) -> list[Event]:
    """A resumable stream, read to its end."""
    prompt = (
        {"messages": [{"role": "user", "content": "hi"}]} if path == "chat/completions" else {"prompt": "the fox"}
    )
    body = {"model": "tiny", "max_tokens": 12, "stream": True} | prompt | fields
    return read_events(await client.post(f"/v1/{path}", json=body, headers=RESUMABLE))


async def follow(client: httpx.AsyncClient, last_id: str, **headers: str) -> httpx.Response:
    """What comes after an event."""
    stream_id = last_id.rpartition("-")[0]
    return await client.get(f"/v1/streams/{stream_id}", headers={"Last-Event-ID": last_id} | headers)
