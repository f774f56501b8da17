"""Seats are for peers that are here and trusted, once they have loaded their layers; the others stand by."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.seating import Seating
from distllm.engine.pipeline.coordinator.situation import Present
from distllm.engine.pipeline.coordinator.standing import Standing
from distllm.engine.pipeline.messages import Endpoint, StageConfig
from distllm.engine.pipeline.security.peer_id import PeerId
from tests.engine.pipeline.coordinator.fake_peers import WHOLE, placer_without_measurements
from tests.engine.pipeline.waiting import until
from tests.scheduler.slot_executor import executor_info

SILENCE_S = 60.0


class Here:
    """Two stages to seat peers for."""

    def __init__(self, state_dir: Path) -> None:
        self.members = Members()
        self.placer = placer_without_measurements(self.members, 2, state_dir)
        self.seating = Seating(self.members, WHOLE, self.placer, SILENCE_S)

    def present(self) -> Present:
        serving = tuple(self.seating.kept())
        return Present(self.seating.present(), serving, 0, 0.0, self.seating.quantization)

    def join(self, name: str) -> Member:
        member = self.members[PeerId(name)]
        member.begin_link()
        member.begin_boot("boot-1", Endpoint(peer_id=name, host="127.0.0.1", port=1), 1 << 30)
        self.members.changed.set()
        return member

    def load(self, member: Member) -> None:
        """All that it was asked for."""
        member.loaded.update({config: executor_info(30, 16, 64) for config in member.asked})
        self.members.changed.set()

    async def seat(self, *members: Member) -> None:
        """As the pipeline does, these peers."""
        seating = asyncio.create_task(self.seating.seat())
        await until(lambda: all(member.asked for member in members))
        for member in members:
            self.load(member)
        self.seating.stages = await seating
        self.seating.settle()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    here = Here(tmp_path)
    placing = asyncio.create_task(here.placer.run(here.present))
    yield here
    placing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await placing


def layers(configs: list[StageConfig]) -> list[tuple[int, int]]:
    return sorted((config.begin, config.end) for config in configs)


async def test_seats_are_taken_once_all_layers_are_loaded(here: Here) -> None:
    ann, bob = here.join("ann-1"), here.join("bob-1")
    seating = asyncio.create_task(here.seating.seat())
    await until(lambda: ann.asked and bob.asked)
    here.load(ann)
    await until(lambda: here.seating.waiting)
    assert not seating.done()
    here.load(bob)
    stages = await seating
    assert not here.seating.waiting
    assert [(it.peer_id, it.config.begin, it.config.end) for it in stages] == [("ann-1", 0, 3), ("bob-1", 3, 6)]


async def test_who_stands_by_loads_every_stage_and_whoever_serves_its_own(here: Here) -> None:
    ann, bob = here.join("ann-1"), here.join("bob-1")
    await here.seat(ann, bob)
    eve = here.join("eve-1")
    here.seating.load_spares()
    here.load(eve)
    assert layers([*eve.loaded]) == [(0, 3), (3, 6)]
    ann.loaded.update(eve.loaded)
    here.seating.have_forgotten()
    assert layers([*ann.loaded]) == [(0, 3)]
    assert layers([*eve.loaded]) == [(0, 3), (3, 6)]


async def test_a_lost_seat_goes_to_who_has_its_layers(here: Here) -> None:
    ann, bob = here.join("ann-1"), here.join("bob-1")
    await here.seat(ann, bob)
    here.join("dan-1")
    eve = here.join("eve-1")
    eve.loaded.update(bob.loaded)
    bob.end_link()
    assert [stage.peer_id for stage in await here.seating.seat()] == ["ann-1", "eve-1"]


async def test_who_was_blamed_is_present_where_others_are_too_few(here: Here) -> None:
    now_s = 0.0
    ann, bob = here.join("ann-1"), here.join("bob-1")
    bob.standing = Standing(clock=lambda: now_s)
    bob.blame("it failed")
    assert here.seating.present() == (ann.peer_id,), "not at once"
    now_s = 2.0
    assert here.seating.present() == (ann.peer_id, bob.peer_id)
    eve = here.join("eve-1")
    assert here.seating.present() == (ann.peer_id, eve.peer_id)
