"""A pipeline forms, goes on when stages are lost, shrinks and grows; no step is lost on the way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from distllm.engine.interface import BlockId, SampleSpec, SequenceChunk, SequenceId, StepInput, StepOutput
from distllm.engine.pipeline.coordinator.events import EventLog
from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.pipeline import Pipeline
from distllm.engine.pipeline.coordinator.placer import Placer
from distllm.engine.pipeline.coordinator.routes import Routes
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import Beat, EdgeDown, Measured, Probed
from distllm.engine.pipeline.patience import Patience
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Link, PeerId
from distllm.engine.pipeline.security import peer_id as certified
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.quantization.config import QuantizationConfig, QuantizationWish
from distllm.engine.sampling_params import SamplingParams
from tests.engine.pipeline.coordinator.fake_peers import TOKEN, WHOLE, FakePeer
from tests.engine.pipeline.coordinator.peers import SAMPLE, times
from tests.engine.pipeline.placement.clusters import model
from tests.engine.pipeline.waiting import TIMEOUT_S, until

SILENCE_S = 0.3


class Cluster:
    """A pipeline and the peers that a test lets in, whose layers take no time unless it says so.

    With `num_stages` the model is divided evenly; without, once it is known how fast everybody is.
    """

    def __init__(self, state_dir: Path, num_stages: int | None = 2, timeout_s: float = TIMEOUT_S) -> None:
        self.members = Members()
        settings = ClusterSettings(
            host="127.0.0.1",
            port=0,
            state_dir=str(state_dir),
            num_stages=num_stages,
            beat_s=SILENCE_S / 3,
            patience=Patience(timeout_s=timeout_s),
        )
        self.survey = Survey(self.members, replace(SAMPLE, sizes=model(WHOLE.num_layers)))
        patience_s = 0.0 if num_stages else TIMEOUT_S
        placer = Placer(self.members, self.survey, WHOLE, settings, patience_s)
        routes = Routes(self.members, self.survey, "none")
        self.events = EventLog()
        self.pipeline = Pipeline(self.members, WHOLE, SAMPLE.vocab_size, placer, routes, settings, self.events)
        self.running = asyncio.gather(self.pipeline.run(), placer.run(self.pipeline.present))
        self._next_step = 0

    def join(self, name: str, wish: QuantizationWish | None = None, num_ranks: int = 1) -> FakePeer:
        return FakePeer(self.members, self.pipeline, name, wish, num_ranks)

    def told_of_rounding(self) -> list[str | None]:
        """Of which peers the events say that they compute in another way than before, the latest first."""
        return [event.peer_id for event in self.events.recent() if event.kind == "rounding"]

    def measure(self, name: str, layer_s: float, *others: str) -> None:
        """Let a peer report how fast it is, and its links to these others."""
        member, here = self.members[certified.PeerId(name)], PeerId(name)
        ways = [(here, COORDINATOR), (COORDINATOR, here), *((here, PeerId(other)) for other in others)]
        self.survey.ask()
        self.survey.take(member, Measured(times=times(layer_s), free_bytes=1 << 30))
        self.survey.ask()
        links = tuple(Link(source, target, 0.0001, 1e9) for source, target in ways)
        self.survey.take(member, Probed(links=links, unreachable={}))
        self.members.changed.set()

    def submit(self) -> "Future[StepOutput]":
        """A step that computes a prompt of three tokens."""
        spec = SampleSpec(SamplingParams(), seed=0, index=0)
        chunk = SequenceChunk(SequenceId(self._next_step), [1, 2, 3], 0, [BlockId(self._next_step)], spec)
        future: Future[StepOutput] = Future()
        self.pipeline.append(StepInput(self._next_step, [chunk]), future)
        self._next_step += 1
        return future

    async def ready(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.pipeline.ready), TIMEOUT_S)


@contextlib.asynccontextmanager
async def running(
    state_dir: Path, num_stages: int | None = 2, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Cluster]:
    cluster = Cluster(state_dir, num_stages, timeout_s)
    try:
        yield cluster
    finally:
        cluster.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cluster.running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as cluster:
        yield cluster


async def answered(future: "Future[StepOutput]") -> None:
    output = await asyncio.wait_for(asyncio.wrap_future(future), TIMEOUT_S)
    assert [chunk.token_id for chunk in output.chunks] == [TOKEN]


async def test_it_begins_once_enough_peers_have_loaded_their_layers(cluster: Cluster) -> None:
    first = cluster.join("a")
    await asyncio.sleep(0.1)
    assert not cluster.pipeline.ready.done()
    second = cluster.join("b")
    await cluster.ready()
    assert [(config.begin, config.end) for peer in (first, second) for config in peer.loads[:1]] == [(0, 3), (3, 6)]
    info = cluster.pipeline.ready.result()
    assert (info.num_blocks, info.num_ranks) == (20, 2), "the smallest stage's pool, and two stages"
    (fence,) = first.fences
    assert (fence.number, fence.predecessor, fence.num_blocks) == (0, None, 20)
    assert fence.successor is not None
    assert fence.successor.peer_id == "b"
    assert (second.fences[0].predecessor, second.fences[0].successor) == ("a", None)
    await answered(cluster.submit())


async def test_a_result_counts_from_the_last_stage_alone(cluster: Cluster) -> None:
    first, _, spare = cluster.join("a"), cluster.join("b"), cluster.join("c")
    await cluster.ready()
    first.withholds = True
    future = cluster.submit()
    await until(lambda: len(first.steps) == 1)
    for intruder in (first, spare):
        first.answer(first.steps[0], intruder.peer_id)
    assert not future.done()
    first.answer(first.steps[0])
    await answered(future)


async def test_a_result_that_cannot_be_costs_its_sender_the_seat_and_the_step_is_computed_again(
    cluster: Cluster,
) -> None:
    first, second, spare = cluster.join("a"), cluster.join("b"), cluster.join("c")
    await cluster.ready()
    await until(lambda: len(spare.loads) == 2)
    first.token, first.withholds = 100, True
    future = cluster.submit()
    await until(lambda: first.steps)
    first.answer(first.steps[0])
    assert first.fault == "sampled token 100 of a vocabulary of 100"
    first.token, first.withholds = TOKEN, False
    await answered(future)
    assert spare.fences[0].number == 1
    assert "sampled token 100" in str(cluster.members[second.peer_id].trouble)


async def test_steps_under_way_are_sent_again_when_the_last_stage_is_lost(cluster: Cluster) -> None:
    first, second, spare = cluster.join("a"), cluster.join("b"), cluster.join("c")
    await cluster.ready()
    await until(lambda: len(spare.loads) == 2)
    first.withholds = True
    future = cluster.submit()
    await until(lambda: first.steps)
    first.withholds = False
    second.leave()
    await answered(future)
    assert [step.epoch for step in first.steps] == [first.fences[0].epoch, first.fences[1].epoch]
    assert spare.fences[0].number == 1
    assert spare.fences[0].config == spare.loads[-1], "the layers that it had loaded before"


async def test_a_peer_that_begins_no_epoch_in_time_makes_way_for_another(tmp_path: Path) -> None:
    async with running(tmp_path, timeout_s=0.2) as cluster:
        first, second, spare = cluster.join("a"), cluster.join("b"), cluster.join("c")
        second.withholds_fences = True
        await cluster.ready()
        assert len(second.fences) == 1
        assert (first.fences[-1].successor or second).peer_id == spare.peer_id
        assert cluster.members[second.peer_id].trouble == "it did not begin an epoch within 0.2 s"
        await answered(cluster.submit())


async def test_a_step_that_comes_while_stages_are_fenced_is_sent_with_those_before_it(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    cluster.join("c")
    await cluster.ready()
    first.withholds = first.withholds_fences = True
    before = cluster.submit()
    await until(lambda: first.steps)
    second.leave()
    await until(lambda: len(first.fences) == 2)
    within = cluster.submit()
    first.withholds = False
    first.answer_fence()
    await answered(before)
    await answered(within)


async def test_an_answer_of_an_epoch_that_has_ended_counts_for_nothing(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    cluster.join("c")
    await cluster.ready()
    first.withholds = True
    future = cluster.submit()
    await until(lambda: first.steps)
    second.leave()
    await until(lambda: len(first.steps) == 2)
    first.answer(first.steps[0])
    assert not future.done()
    first.answer(first.steps[1])
    await answered(future)


async def test_a_silent_peer_is_lost_and_does_not_get_its_seat_again_at_once(cluster: Cluster) -> None:
    first, second, spare = cluster.join("a"), cluster.join("b"), cluster.join("c")
    await cluster.ready()
    first.fall_silent()
    await until(lambda: spare.fences)
    assert (spare.fences[-1].number, len(first.fences)) == (0, 1)
    await answered(cluster.submit())
    assert second.fences[-1].predecessor == "c"


async def test_the_only_spare_takes_over_though_it_was_blamed_a_moment_ago(cluster: Cluster) -> None:
    first, second, spare = cluster.join("a"), cluster.join("b"), cluster.join("c")
    await cluster.ready()
    await until(lambda: len(spare.loads) == 2)
    member = cluster.members[spare.peer_id]
    member.blame("it was slow")
    await until(lambda: member.standing.may_be_needed)
    assert member.trouble is not None
    second.leave()
    await until(lambda: spare.fences)
    assert (len(first.fences), spare.fences[0].number) == (2, 1)
    await answered(cluster.submit())


async def test_a_blamed_stage_serves_again_where_there_is_nobody_else_before_it_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distllm.engine.pipeline.coordinator.standing._FORGIVEN_S", 3600.0)
    async with running(tmp_path, num_stages=1) as cluster:
        only = cluster.join("a")
        await cluster.ready()
        cluster.members[only.peer_id].blame("it was slow")
        await until(lambda: len(only.fences) == 2)
        await answered(cluster.submit())


async def test_it_goes_on_over_fewer_peers_and_grows_again(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    await cluster.ready()
    await answered(cluster.submit())
    second.leave()
    await until(lambda: first.fences[-1].successor is None)
    assert (first.fences[-1].config.begin, first.fences[-1].config.end) == (0, 6)
    await answered(cluster.submit())
    third = cluster.join("d")
    await until(lambda: third.fences)
    assert len(cluster.pipeline.status.stages) == 2
    await answered(cluster.submit())


async def test_all_stages_compute_in_the_numerics_of_the_first(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    second.numerics = "another order of sums"
    await cluster.ready()
    assert [config.numerics for config in first.loads] == [None]
    assert [config.numerics for config in second.loads] == [None, "exact"]
    assert cluster.pipeline.ready.result().numerics == "exact"
    second.leave()
    await until(lambda: first.fences[-1].successor is None)
    assert first.fences[-1].config.numerics == "exact", "the whole model too, once it is left alone"
    await answered(cluster.submit())


async def test_ranks_make_no_stage_load_again(cluster: Cluster) -> None:
    first, second = cluster.join("a", num_ranks=2), cluster.join("b")
    await cluster.ready()
    assert [len(peer.loads) for peer in (first, second)] == [1, 1], "both compute in the same order of sums"
    assert cluster.pipeline.ready.result().num_ranks == 3
    assert not cluster.told_of_rounding()


async def test_a_spare_with_as_many_ranks_is_preferred(cluster: Cluster) -> None:
    cluster.join("a")
    second, plain, ranked = cluster.join("b", num_ranks=2), cluster.join("c"), cluster.join("d", num_ranks=2)
    await cluster.ready()
    await until(lambda: len(plain.loads) == len(ranked.loads) == 2)
    second.leave()
    await until(lambda: ranked.fences)
    await answered(cluster.submit())
    assert not plain.fences
    assert not cluster.told_of_rounding()


async def test_that_bits_change_with_the_number_of_ranks_is_told(cluster: Cluster) -> None:
    cluster.join("a")
    second, spare = cluster.join("b", num_ranks=2), cluster.join("c")
    await cluster.ready()
    await until(lambda: len(spare.loads) == 2)
    second.leave()
    await until(lambda: spare.fences)
    await answered(cluster.submit())
    assert cluster.told_of_rounding() == ["c"]


async def test_a_stage_that_its_peer_has_lost_goes_to_a_spare_and_is_loaded_anew(cluster: Cluster) -> None:
    first, second, spare = cluster.join("a"), cluster.join("b", num_ranks=2), cluster.join("c", num_ranks=2)
    await cluster.ready()
    await until(lambda: len(spare.loads) == 2)
    first.withholds = True
    future = cluster.submit()
    await until(lambda: first.steps)
    first.withholds = False
    second.lose_stages()
    await until(lambda: spare.fences)
    await answered(future)
    assert len(second.fences) == 1
    await until(lambda: len(second.loads) == 3)
    assert [(config.begin, config.end) for config in second.loads] == [(3, 6), (0, 3), (3, 6)], "as a spare"


async def test_peers_have_their_layers_quantized_as_they_wish(cluster: Cluster) -> None:
    cluster.join("a")
    second = cluster.join("b", wish="int8")
    spare = cluster.join("c", wish="none")
    await cluster.ready()
    await until(lambda: len(spare.loads) == 2)
    int8 = QuantizationConfig.named("int8")
    assert [config.quantization for config in second.loads] == [int8]
    assert [config.quantization for config in spare.loads] == [None, int8], (
        "what the stages have, not what it wishes"
    )
    second.leave()
    await until(lambda: spare.fences)
    assert not cluster.told_of_rounding()


async def test_a_layer_stays_quantized_as_it_was_when_the_model_is_divided_anew(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b", wish="int8")
    await cluster.ready()
    second.leave()
    await until(lambda: first.fences[-1].successor is None)
    whole = first.fences[-1].config
    assert (whole.begin, whole.end, whole.quantization) == (0, 6, None)
    assert [run.name for run in whole.layer_quantization] == ["3xstored", "3xw8"]
    await answered(cluster.submit())
    assert not cluster.told_of_rounding()


async def test_without_any_peer_steps_wait(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    await cluster.ready()
    first.leave()
    second.leave()
    await asyncio.sleep(2 * SILENCE_S)
    future = cluster.submit()
    await asyncio.sleep(0.1)
    assert not future.done()
    cluster.join("c")
    await answered(future)


async def test_a_peer_that_was_started_anew_has_lost_its_layers(cluster: Cluster) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    await cluster.ready()
    second.leave()
    second.connect("boot-2")
    await until(lambda: len(second.fences) > 1)
    await answered(cluster.submit())
    assert first.fences[-1].epoch == second.fences[-1].epoch


async def test_a_peer_that_cannot_load_makes_way_for_another(cluster: Cluster) -> None:
    unable = cluster.join("a")
    unable.refuses_loading = "the disk is full"
    cluster.join("b")
    third = cluster.join("c")
    await cluster.ready()
    assert third.fences
    assert not unable.fences


async def test_a_peer_that_could_not_load_is_asked_again_once_it_has_more_memory(tmp_path: Path) -> None:
    async with running(tmp_path, num_stages=1) as cluster:
        only = cluster.join("a")
        only.refuses_loading = "no room"
        await until(lambda: only.loads)
        await asyncio.sleep(0.2)
        assert len(only.loads) == 1
        only.refuses_loading = None
        cluster.members[only.peer_id].take_beat(Beat(boot="boot-1", busy_s=0.0, free_bytes=2 << 30))
        await cluster.ready()
        assert len(only.loads) == 2


@pytest.fixture
async def measured(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path, num_stages=None) as cluster:
        yield cluster


async def test_a_better_plan_is_taken_when_a_peer_joins_and_no_step_is_lost(measured: Cluster) -> None:
    first = measured.join("a")
    measured.measure("a", 0.001)
    await measured.ready()
    assert [(config.begin, config.end) for config in first.loads] == [(0, 6)]
    first.withholds = True
    future = measured.submit()
    await until(lambda: first.steps)
    first.withholds = False
    second = measured.join("b")
    measured.measure("b", 0.001, "a")
    measured.measure("a", 0.001, "b")
    await until(lambda: second.fences)
    spans = [(peer.fences[-1].config.begin, peer.fences[-1].config.end) for peer in (first, second)]
    assert sorted(spans)[0][0] == 0
    assert sorted(spans)[1] == (sorted(spans)[0][1], 6)
    await answered(future)
    assert len(second.fences) == 1, "a plan is changed to once"
    await answered(measured.submit())


async def test_a_better_plan_that_cannot_be_loaded_leaves_what_serves_alone(measured: Cluster) -> None:
    first = measured.join("a")
    measured.measure("a", 0.001)
    await measured.ready()
    second = measured.join("b")
    second.refuses_loading = "no memory"
    measured.measure("b", 0.001, "a")
    measured.measure("a", 0.001, "b")
    await until(lambda: any((config.begin, config.end) != (0, 6) for config in second.loads))
    await asyncio.sleep(2 * SILENCE_S)
    assert len(first.fences) == 1
    assert not second.fences
    await answered(measured.submit())


async def test_a_slow_peer_that_joins_stands_by(measured: Cluster) -> None:
    first = measured.join("a")
    measured.measure("a", 0.001)
    await measured.ready()
    second = measured.join("b")
    measured.measure("b", 0.05, "a")
    measured.measure("a", 0.001, "b")
    await until(lambda: second.loads)
    await asyncio.sleep(2 * SILENCE_S)
    assert len(first.fences) == 1
    assert [(config.begin, config.end) for config in second.loads] == [(0, 6)]


async def test_stages_that_cannot_reach_each_other_are_relayed_between_and_nobody_is_to_blame(
    cluster: Cluster,
) -> None:
    first, second = cluster.join("a"), cluster.join("b")
    await cluster.ready()
    first.withholds = True
    future = cluster.submit()
    await until(lambda: len(first.steps) == 1)
    epoch = first.fences[-1].epoch
    assert cluster.pipeline.relayed_to(first.peer_id, epoch) is Status.REFUSED, "they reach each other"
    assert cluster.pipeline.has_edge(first.peer_id, second.peer_id, epoch)
    assert not cluster.pipeline.has_edge(second.peer_id, first.peer_id, epoch)
    assert not cluster.pipeline.has_edge(first.peer_id, second.peer_id, epoch - 1)
    first.withholds = False
    cluster.survey.take(
        cluster.members[first.peer_id], EdgeDown(epoch=epoch, successor=second.peer_id, reason="refused")
    )
    cluster.members.changed.set()
    await answered(future)
    told, heard = first.fences[-1], second.fences[-1]
    assert (told.is_relayed, heard.predecessor, heard.number) == (True, None, 1)
    assert cluster.members[second.peer_id].trouble is None
    assert cluster.pipeline.relayed_to(first.peer_id, told.epoch) == second.peer_id
    assert cluster.pipeline.relayed_to(second.peer_id, told.epoch) is Status.REFUSED
    assert cluster.pipeline.relayed_to(first.peer_id, epoch) is Status.STALE
    assert cluster.pipeline.relayed_to(first.peer_id, told.epoch + 1) is Status.NOT_YET


async def test_a_stage_whose_link_was_replaced_unseen_gets_its_steps_again(cluster: Cluster) -> None:
    first, _ = cluster.join("a"), cluster.join("b")
    await cluster.ready()
    first.withholds = True
    future = cluster.submit()
    await until(lambda: len(first.steps) == 1)
    first.withholds = False
    first.connect("boot-1")
    await answered(future)
    assert len(first.fences) == 2
    assert cluster.members[first.peer_id].trouble is None
