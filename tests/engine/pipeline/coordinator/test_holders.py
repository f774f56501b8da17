"""A peer hears of the others that have loaded all of the layers that it needs."""

import asyncio

import msgspec
import pytest

from distllm.engine.pipeline.coordinator.holders import Holders
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.messages import Endpoint
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.weights.messages import HOLDERS_PATH, HoldersRequest
from tests.engine.pipeline.weights.machines import stage_config
from tests.scheduler.slot_executor import executor_info

MODEL, OTHER = "0" * 64, "1" * 64


@pytest.fixture
def members() -> Members:
    """Peers that have layers 0 to 1, 1 to 2, 0 to 2 of another model, and one that is away."""
    members = Members()
    loaded = {"low": (MODEL, 0, 2), "high": (MODEL, 1, 3), "other": (OTHER, 0, 3), "away": (MODEL, 0, 3)}
    for number, (name, stage) in enumerate(loaded.items()):
        member = members[PeerId(name)]
        member.outbound = None if name == "away" else asyncio.Queue()
        member.endpoint = Endpoint(peer_id=name, host="10.0.0.1", port=1_000 + number)
        member.loaded[stage_config(*stage)] = executor_info(1, 16, 128)
    return members


async def ask(members: Members, caller: str, begin: int, end: int) -> list[str]:
    request = HoldersRequest(fingerprint=MODEL, begin=begin, end=end)
    reply = await Holders(members).posts[HOLDERS_PATH](PeerId(caller), msgspec.msgpack.encode(request))
    assert reply.status == 200
    return [endpoint.peer_id for endpoint in msgspec.msgpack.decode(reply.body, type=list[Endpoint])]


async def test_only_peers_with_all_of_the_layers_are_named(members: Members) -> None:
    assert await ask(members, "new", 1, 2) == ["low", "high"]
    assert await ask(members, "new", 0, 1) == ["low"]
    assert await ask(members, "new", 2, 3) == ["high"]
    assert await ask(members, "new", 0, 3) == []


async def test_nobody_is_told_of_itself(members: Members) -> None:
    assert await ask(members, "low", 1, 2) == ["high"]


async def test_nonsense_is_refused(members: Members) -> None:
    reply = await Holders(members).posts[HOLDERS_PATH](PeerId("new"), b"\xc1")
    assert reply.status == 400
