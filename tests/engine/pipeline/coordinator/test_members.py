"""What the coordinator asks of a peer, and how often."""

import asyncio
from typing import Any

import msgspec
import pytest

from distllm.engine.pipeline.coordinator import members as module
from distllm.engine.pipeline.coordinator.members import Member
from distllm.engine.pipeline.messages import Endpoint, Load
from distllm.engine.pipeline.security.peer_id import PeerId
from tests.engine.pipeline.coordinator.peers import WHOLE


def member() -> Member:
    made = Member(PeerId("a"))
    made.outbound = asyncio.Queue()
    made.begin_boot("1", Endpoint(peer_id="a", host="127.0.0.1", port=1), 1000)
    return made


def num_asked(of: Member) -> int:
    assert of.outbound is not None
    frames = [of.outbound.get_nowait() for _ in range(of.outbound.qsize())]
    return sum(Load.__name__.encode() in (frame or b"") for frame in frames)


async def test_a_stage_is_asked_for_once() -> None:
    peer = member()
    for _ in range(3):
        peer.have_loaded(WHOLE)
    assert num_asked(peer) == 1


async def test_it_is_asked_for_again_where_no_answer_came(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, clock_s = member(), 1000.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return clock_s

    monkeypatch.setattr(module, "time", Clock)
    peer.have_loaded(WHOLE)
    clock_s += 61.0
    peer.have_loaded(WHOLE)
    assert num_asked(peer) == 2
    info: Any = msgspec.UNSET
    peer.loaded[WHOLE] = info
    clock_s += 61.0
    peer.have_loaded(WHOLE)
    assert num_asked(peer) == 0
