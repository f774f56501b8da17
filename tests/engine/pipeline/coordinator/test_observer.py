"""What is told of a cluster, through joins, losses and recoveries."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from distllm.engine.interface import BlockId, SequenceChunk, SequenceId, StepInput, StepOutput
from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.observer import Observer
from distllm.engine.pipeline.coordinator.pipeline import Pipeline
from distllm.engine.pipeline.coordinator.routes import Routes
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.messages import Beat, Work
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.security.removed_peers import RemovedPeers
from distllm.engine.pipeline.settings import ClusterSettings
from tests.engine.pipeline.coordinator.fake_peers import WHOLE, FakePeer, placer_without_measurements
from tests.engine.pipeline.coordinator.peers import SAMPLE
from tests.engine.pipeline.waiting import until


class ObservedCluster:
    """A pipeline and its peers by name. Peers that join while not `loads` never have their layers."""

    def __init__(self, num_stages: int, state_dir: Path) -> None:
        self.members, self.events = Members(), EventLog()
        self.placer = placer_without_measurements(self.members, num_stages, state_dir)
        self.survey = Survey(self.members, SAMPLE)
        self.removed = RemovedPeers(state_dir)
        routes = Routes(self.members, self.survey, "none")
        settings = ClusterSettings(host="127.0.0.1", port=0, state_dir=str(state_dir), beat_s=20.0)
        self.pipeline = Pipeline(self.members, WHOLE, SAMPLE.vocab_size, self.placer, routes, settings, self.events)
        self.observer = Observer(
            self.members, self.survey, self.pipeline, WHOLE, num_stages, self.events, self.removed
        )
        self.peers: dict[str, FakePeer] = {}
        self.loads = True

    def join(self, name: str) -> None:
        self.peers[name] = FakePeer(self.members, self.pipeline, name)
        self.peers[name].is_loading = not self.loads

    def observe(self) -> ClusterSnapshot:
        return self.observer.observe()

    async def until(self, kind: str, number: int = 1) -> ClusterSnapshot:
        """The cluster once it has had so many events of a kind."""
        await until(lambda: sum(event.kind == kind for event in self.events.recent()) >= number)
        return self.observe()

    async def until_spare(self, name: str) -> None:
        """Once it has loaded what it may have to take over."""
        await until(lambda: len(self.members[PeerId(name)].loaded) == 2)


@asynccontextmanager
async def observed(num_stages: int, *names: str) -> AsyncIterator[ObservedCluster]:
    """A pipeline that runs over peers of these names."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as state_dir:  # a plan may still be being written
        cluster = ObservedCluster(num_stages, Path(state_dir))
        running = asyncio.gather(cluster.pipeline.run(), cluster.placer.run(cluster.pipeline.present))
        for name in names:
            cluster.join(name)
        try:
            yield cluster
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            for peer in cluster.peers.values():
                peer.leave()


def step(step_id: int, num_computed: int = 0, num_tokens: int = 8) -> StepInput:
    chunk = SequenceChunk(SequenceId(1), [5] * num_tokens, num_computed, [BlockId(3)], sample=None)
    return StepInput(step_id, [chunk])


def kinds(cluster: ClusterSnapshot) -> list[str]:
    return [event.kind for event in cluster.events]


async def test_a_plan_s_stages_are_told_with_what_they_hold() -> None:
    async with observed(2, "p1", "p2", "p3") as cluster:
        seen = await cluster.until("planned")
    assert (seen.is_serving, seen.waiting, seen.num_stages, seen.num_layers) == (True, None, 2, 6)
    assert [(it.peer_id, it.begin, it.end, it.num_blocks) for it in seen.stages] == [
        ("p1", 0, 3, 30),
        ("p2", 3, 6, 20),
    ]
    assert [(link.source, link.target, link.frame_s) for link in seen.links] == [("p1", "p2", None)]
    assert [(it.peer_id, it.stage) for it in seen.peers] == [("p1", 0), ("p2", 1), ("p3", None)]
    assert seen.peers[0].state == "serving"
    assert seen.peers[0].loaded == [(0, 3)]
    assert seen.events[0].text == "p1 [0, 3) -> p2 [3, 6)"
    assert seen.recoveries_total == 0


async def test_a_spare_is_one_once_it_has_loaded() -> None:
    async with observed(1, "p1", "p2") as cluster:
        await cluster.until("planned")
        await until(lambda: cluster.members[PeerId("p2")].loaded)
        assert [peer.state for peer in cluster.observe().peers] == ["serving", "spare"]
        cluster.loads = False
        cluster.join("p3")
        assert cluster.observe().peers[2].state == "joining"


async def test_a_peer_that_is_passed_over_is_no_spare() -> None:
    async with observed(1, "p1", "p2") as cluster:
        await cluster.until("planned")
        await until(lambda: cluster.members[PeerId("p2")].loaded)
        cluster.members[PeerId("p2")].standing.note_absence("was away")
        assert [peer.state for peer in cluster.observe().peers] == ["serving", "spare"]
        cluster.members[PeerId("p2")].blame("has sent nonsense")
        passed_over = cluster.observe().peers[1]
    assert (passed_over.state, passed_over.trouble) == ("unusable", "has sent nonsense")


async def test_a_peer_that_can_load_nothing_is_unusable_for_what_it_says() -> None:
    async with observed(1, "p1") as cluster:
        await cluster.until("planned")
        cluster.loads = False
        cluster.join("p2")
        await until(lambda: cluster.members[PeerId("p2")].asked)
        [config] = cluster.members[PeerId("p2")].asked
        cluster.members[PeerId("p2")].refuse(config, "it has no room")
        full = cluster.observe().peers[1]
    assert (full.state, full.trouble) == ("unusable", "cannot load [0, 6): it has no room")


async def test_a_peer_that_was_put_out_is_removed_and_not_gone() -> None:
    async with observed(1, "p1", "p2") as cluster:
        await cluster.until("planned")
        put_out = datetime(2026, 5, 4, tzinfo=UTC)
        cluster.removed.add(PeerId("p2"), put_out)
        cluster.peers["p2"].leave()
        seen = cluster.observe().peers
    assert [(peer.state, peer.removed_s) for peer in seen] == [("serving", None), ("removed", put_out.timestamp())]


async def test_a_loss_is_suspected_and_then_recovered_from() -> None:
    async with observed(2, "p1", "p2", "p3") as cluster:
        before = await cluster.until("planned")
        await cluster.until_spare("p3")
        cluster.peers["p1"].leave()
        after = await cluster.until("recovered")
    assert before.epoch is not None
    assert after.epoch is not None
    assert after.epoch > before.epoch
    assert kinds(after) == ["recovered", "suspected", "planned"]
    suspicion, recovery = after.events[1], after.events[0]
    assert (suspicion.peer_id, suspicion.text) == ("p1", "it has gone")
    assert recovery.duration_ms is not None
    assert after.last_recovery_s is not None
    assert recovery.duration_ms == 1000 * after.last_recovery_s > 0
    assert after.recoveries_total == 1
    assert [stage.peer_id for stage in after.stages] == ["p3", "p2"]
    assert [peer.state for peer in after.peers] == ["gone", "serving", "serving"]
    assert after.peers[0].trouble == "has gone"


async def test_a_second_loss_during_a_recovery_is_part_of_it() -> None:
    async with observed(2, "p1", "p2") as cluster:
        await cluster.until("planned")
        cluster.peers["p2"].is_loading = True
        cluster.peers["p1"].leave()
        await cluster.until("suspected")
        await until(lambda: cluster.observe().waiting == "layers are being loaded: p2 [0, 6)")
        cluster.peers["p2"].leave()
        cluster.join("p4")
        seen = await cluster.until("recovered")
    assert seen.recoveries_total == 1
    assert [stage.peer_id for stage in seen.stages] == ["p4"]


async def test_growing_again_is_a_plan_and_no_recovery() -> None:
    async with observed(2, "p1", "p2") as cluster:
        await cluster.until("planned")
        cluster.peers["p2"].leave()
        await cluster.until("recovered")
        cluster.join("p3")
        seen = await cluster.until("planned", 2)
    assert seen.recoveries_total == 1
    assert len(seen.stages) == 2


async def test_waiting_says_who_is_missing_and_ends() -> None:
    async with observed(2) as cluster:
        cluster.loads = False
        cluster.join("p1")
        await until(lambda: cluster.observe().waiting == "1 of 2 needed peers can serve")
        seen = cluster.observe()
        assert (seen.is_serving, seen.epoch, seen.stages) == (False, None, [])
        cluster.join("p2")
        await until(lambda: cluster.observe().waiting == "layers are being loaded: p1 [0, 3), p2 [3, 6)")
        cluster.members[PeerId("p2")].blame("has no memory\n" + 1000 * "x")
        cluster.members.changed.set()
        await until(lambda: "1 of 2" in (cluster.observe().waiting or ""))
        waiting = cluster.observe().waiting
        assert waiting is not None
        assert waiting.startswith("1 of 2 needed peers can serve; p2: has no memory x")
        assert len(waiting) <= 1000
        cluster.loads = True
        for name in ("p3", "p4"):
            cluster.join(name)
        cluster.peers["p1"].leave()
        assert (await cluster.until("planned")).waiting is None


async def test_steps_in_flight_and_rebuilt_tokens_are_counted() -> None:
    async with observed(2, "p1", "p2", "p3") as cluster:
        await cluster.until("planned")
        await cluster.until_spare("p3")
        done: Future[StepOutput] = Future()
        cluster.pipeline.append(step(1), done)
        await asyncio.wait_for(asyncio.wrap_future(done), 5)
        for peer in cluster.peers.values():
            peer.withholds = True
        cluster.pipeline.append(step(2, num_computed=8, num_tokens=1), Future())
        assert cluster.observe().num_in_flight == 1
        assert cluster.observe().rebuilt_tokens_total == 0
        cluster.peers["p1"].leave()
        seen = await cluster.until("recovered")
    assert seen.num_in_flight == 1
    assert seen.rebuilt_tokens_total == 8


async def test_means_are_of_the_latest_beats() -> None:
    async with observed(2, "p1", "p2") as cluster:
        await cluster.until("planned")
        member = cluster.members[PeerId("p1")]

        def beat(boot: str, **work: float) -> None:
            member.take_beat(Beat(boot=boot, busy_s=0.5, work=Work(**work), free_bytes=7, round_trip_s=0.25))  # type: ignore[arg-type]

        beat("boot-1", num_steps=10, compute_s=1.0, num_sent=10, sent_bytes=1000, send_s=0.5)
        beat("boot-1", num_steps=12, compute_s=2.0, num_sent=14, sent_bytes=3000, send_s=1.5)
        seen = cluster.observe()
        assert (seen.stages[0].step_s, seen.peers[0].step_s) == (0.5, 0.5)
        assert (seen.links[0].frame_s, seen.links[0].bytes_per_s) == (0.25, 2000.0)
        peer = seen.peers[0]
        assert (peer.busy_s, peer.free_bytes, peer.round_trip_s) == (0.5, 7, 0.25)
        assert (peer.steps_total, peer.compute_s_total, peer.sent_bytes_total) == (12, 2.0, 3000)

        beat("boot-1", num_steps=12, compute_s=2.0, num_sent=14, sent_bytes=3000, send_s=1.5)
        assert cluster.observe().stages[0].step_s == 0.5, "a beat without work changes no mean"
        beat("boot-1", num_steps=11, compute_s=1.5, num_sent=12, sent_bytes=2000, send_s=1.0)
        assert cluster.observe().peers[0].steps_total == 12, "one that came late takes nothing back"
        beat("another boot", num_steps=99, compute_s=9.0)
        assert cluster.observe().peers[0].steps_total == 12, "nor does one of another boot"


async def test_a_boot_begins_its_counters_anew() -> None:
    async with observed(1, "p1") as cluster:
        await cluster.until("planned")
        member = cluster.members[PeerId("p1")]
        member.take_beat(Beat(boot="boot-1", busy_s=0.0, work=Work(num_steps=5, compute_s=1.0)))
        assert member.endpoint is not None
        member.begin_boot("anew", member.endpoint, 1)
        member.take_beat(Beat(boot="anew", busy_s=0.0, work=Work(num_steps=2, compute_s=0.5)))
        assert member.workload.work.num_steps == 2
        assert member.workload.step_s == 0.25


async def test_snapshots_come_with_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distllm.engine.pipeline.coordinator.observer._EVERY_S", 3600.0)
    seen: list[ClusterSnapshot] = []
    async with observed(1) as cluster, cluster.observer.reporting(seen.append):
        await asyncio.sleep(0.05)
        assert len(seen) == 1
        cluster.join("p1")
        await cluster.until("planned")
        await until(lambda: seen[-1].is_serving)
