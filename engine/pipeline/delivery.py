"""Sends a frame until it is acknowledged, or is not wanted any more."""

import asyncio
from collections.abc import Callable
from enum import Enum

from distllm.engine.pipeline.transport.client import Http2Client, Unreachable

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.25
_TIMEOUT_S = 10.0


class Status(int, Enum):
    """How a step is answered, as a status of HTTP."""

    ACCEPTED = 200
    MALFORMED = 400
    REFUSED = 403
    STALE = 409
    NOT_YET = 425
    FULL = 429


class Refused(Exception):
    """The receiver will never take the frame; the message is its reason."""


async def deliver(
    client: Http2Client,
    path: str,
    frame: bytes,
    is_wanted: Callable[[], bool],
    on_unreachable: Callable[[str], None] = lambda _: None,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """Raises Refused. `on_unreachable` hears of every attempt that came to nothing, within `timeout_s` each."""
    pause_s = _FIRST_PAUSE_S
    while is_wanted():
        try:
            status, answer = await client.post(path, frame, timeout_s)
        except Unreachable as error:
            on_unreachable(str(error))
        else:
            if status in (Status.ACCEPTED, Status.STALE):
                return
            if status not in (Status.NOT_YET, Status.FULL):
                raise Refused(answer.decode(errors="replace"))
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
