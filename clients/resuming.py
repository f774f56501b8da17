"""Going on with a stream whose connection broke: when, how often, and by which requests."""

import asyncio
import random
import time
from collections.abc import Callable

import httpx

from distllm.clients.calls import Reply, api_error
from distllm.clients.errors import (
    ClientError,
    ConnectionLostError,
    RequestTimeoutError,
    ServerUnreachableError,
)
from distllm.clients.transport import Connection

ASK = {"x-resumable": "true"}
"""The header that asks for a stream which can be resumed."""
STREAM_ID = "x-stream-id"
"""The header that says that one can."""
BROKEN = (ConnectionLostError, RequestTimeoutError)
"""What a stream that may be gone on with ends with."""
_AWAY = (ServerUnreachableError, ConnectionLostError, RequestTimeoutError)
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0


class Resumption:
    """Where one stream is to be had again, and the attempts since it broke.

    The first attempt is made at once, the others after growing delays. A stream that breaks again before an event
    has come is still the one that broke before.
    """

    def __init__(self, stream_id: str, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = f"/v1/streams/{stream_id}"
        self._within_s = within_s
        self._clock = clock
        self._broke_at: str | None = None
        self._cause: ClientError
        self._end_s = 0.0
        self._delay_s = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """Without the id of an event all of them come."""
        return {"last-event-id": self._broke_at} if self._broke_at else {}

    def note_break(self, last_event_id: str, cause: ClientError) -> None:
        """It broke after that event, "" for before any."""
        self._cause = cause
        if last_event_id != self._broke_at:
            self._broke_at = last_event_id
            self._end_s = self._clock() + self._within_s
            self._delay_s = 0.0

    def next_delay_s(self) -> float:
        """Seconds to wait before the next attempt. Raises what broke the stream when the time is up."""
        delay_s = self._delay_s * random.uniform(0.5, 1.0)
        if self._clock() + delay_s > self._end_s:
            raise self._cause
        self._delay_s = min(_LONGEST_DELAY_S, max(_FIRST_DELAY_S, 2 * self._delay_s))
        return delay_s

    def note_refusal(self, reply: Reply) -> None:
        """Raises what broke the stream where another attempt will be refused as well."""
        if reply.status not in (429, 503):
            raise self._cause from api_error(reply)


class Resumer:
    """Goes on with the streams of a `Client`."""

    def __init__(self, http: httpx.Client, connection: Connection, within_s: float) -> None:
        self.within_s = within_s
        self._http = http
        self._connection = connection

    def reopen(self, resumption: Resumption) -> httpx.Response:
        """The rest of a stream. Raises what broke it where it is not to be had in time."""
        request = self._http.build_request("GET", resumption.path, headers=resumption.headers)
        while True:
            time.sleep(resumption.next_delay_s())
            try:
                with self._connection.errors():
                    response = self._http.send(request, stream=True)
                    if response.is_success:
                        return response
                    body = response.read()
            except _AWAY:
                continue
            resumption.note_refusal(Reply(response.status_code, response.headers, body))

    def end(self, resumption: Resumption) -> None:
        """Tell the server that nobody comes back. Where that fails it finds out by itself."""
        try:
            with self._connection.errors():
                self._http.delete(resumption.path)
        except ClientError:
            return


class AsyncResumer:
    """Goes on with the streams of an `AsyncClient`."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection, within_s: float) -> None:
        self.within_s = within_s
        self._http = http
        self._connection = connection

    async def reopen(self, resumption: Resumption) -> httpx.Response:
        """The rest of a stream. Raises what broke it where it is not to be had in time."""
        request = self._http.build_request("GET", resumption.path, headers=resumption.headers)
        while True:
            await asyncio.sleep(resumption.next_delay_s())
            try:
                with self._connection.errors():
                    response = await self._http.send(request, stream=True)
                    if response.is_success:
                        return response
                    body = await response.aread()
            except _AWAY:
                continue
            resumption.note_refusal(Reply(response.status_code, response.headers, body))

    async def end(self, resumption: Resumption) -> None:
        """Tell the server that nobody comes back. Where that fails it finds out by itself."""
        try:
            with self._connection.errors():
                await self._http.delete(resumption.path)
        except ClientError:
            return


def resumption_of(response: httpx.Response, resumer: Resumer | AsyncResumer | None) -> Resumption | None:
    """None where going on was not asked for, or the server has not said that one can."""
    stream_id = response.headers.get(STREAM_ID)
    return Resumption(stream_id, resumer.within_s) if resumer and stream_id else None
