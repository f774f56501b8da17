"""Ranks that share no memory: the bits of those that do, and a first rank that knows how they are."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import StepTensors, build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.distributed.arrivals import Arrivals
from distllm.engine.distributed.first_rank_watch import watch_first_rank
from distllm.engine.distributed.hosts.remote_rank import RankLost, RemoteRank
from distllm.engine.distributed.hosts.several_hosts import SeveralHosts, WireExchange
from distllm.engine.distributed.hosts.wire import Kind, Wire
from distllm.engine.distributed.hosts.wire_link import WireLink
from distllm.engine.distributed.launcher.launch import Launch, LaunchedRanks
from distllm.engine.distributed.rank import FirstRankLink, run_rank
from distllm.engine.distributed.rank_check import RankCheck
from distllm.engine.distributed.rank_watch import RankWatch
from distllm.engine.distributed.shared_bytes import create_descriptor
from distllm.engine.distributed.shared_memory_link import Descriptors, SharedMemoryExchange, SharedMemoryLink
from distllm.engine.distributed.step_exchange import RankResult, StepExchange
from distllm.engine.distributed.step_frame import FrameSize, StepFrame
from distllm.engine.executor.tensor_parallel import ShardedForward
from distllm.engine.forward import ModelForward
from distllm.engine.served_model import prepare_model
from tests.engine.distributed.thread_ranks import ThreadGroup, loading_in_turn, on_every_rank
from tests.engine.test_forward import NUM_BLOCKS, VOCAB_SIZE, Part, make_stories

SIZE = 3
Ends = tuple[SeveralHosts, list[WireLink]]


def place(rank: int) -> Launch:
    return Launch(
        rank=rank, size=SIZE, local_rank=0, local_size=1, host=rank, num_hosts=SIZE, address="127.0.0.1", port=1
    )


def wires(count: int) -> list[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = [socket.create_connection(listener.getsockname()) for _ in range(count)]
        return [(listener.accept()[0], end) for end in theirs]


@contextmanager
def hosts() -> Iterator[Ends]:
    launched = LaunchedRanks(
        size=SIZE, num_local=1, num_hosts=SIZE, address="127.0.0.1", listener=0, binds_cores=False
    )
    ours, theirs = zip(*wires(SIZE - 1), strict=True)
    placement = SeveralHosts(launched, ours, timeout_s=60)
    wires_of_ranks = [Wire(end) for end in theirs]
    try:
        yield placement, [WireLink(wire, place(rank)) for rank, wire in enumerate(wires_of_ranks, 1)]
    finally:
        placement.close()
        for wire in wires_of_ranks:
            wire.close()


@contextmanager
def shared_memory(
    size: FrameSize,
) -> Iterator[tuple[StepExchange, list[SharedMemoryLink], Callable[[], None]]]:
    """Both ends, and what closes the first rank's."""
    frame, arrivals = create_descriptor(), create_descriptor()
    with ExitStack() as stack:
        stack.callback(os.close, arrivals)
        pipes = [(Pipe(), Pipe()) for _ in range(SIZE - 1)]
        links = [
            SharedMemoryLink(Descriptors(os.dup(control.fileno()), os.dup(alarm.fileno()), arrivals, frame))
            for (_, control), (_, alarm) in pipes
        ]
        exchange = SharedMemoryExchange(StepFrame(frame, size), [ours for (ours, _), _ in pipes])
        for rank, link in enumerate(links, 1):
            link.join(rank, SIZE)
            link.open_frame(size)

        def give_up() -> None:
            for connection in itertools.chain(*itertools.chain(*pipes)):
                connection.close()

        yield exchange, links, give_up
        give_up()
        os.close(frame)


def test_logits_have_the_bits_of_ranks_that_share_memory(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model=str(checkpoint("llama")), device="cpu", max_model_len=128, num_threads=1)
    with loading_in_turn():
        served = on_every_rank(SIZE, lambda group: prepare_model(config, lambda *_: None, group))
    sharding = served[0].sharding
    assert sharding is not None
    forwards = [model.forward_over(NUM_BLOCKS) for model in served]
    stories = make_stories(3, [33, 20])
    steps = [
        build_step_tensors([Part(stories[0], 0, 30).chunk()], range(30)),
        build_step_tensors([Part(stories[0], 30, 33).chunk(), Part(stories[1], 0, 20).chunk()], [2, 22]),
        build_step_tensors([Part(stories[1], 19, 20).chunk()], []),
    ]
    size = FrameSize(64, 4, 8, tuple(len(part) for part in sharding.vocabularies))
    check = RankCheck(served[0].model, 0)
    with shared_memory(size) as (exchange, links, give_up):
        expected = [run(exchange, links, forwards, step, check, give_up) for step in steps]
    with hosts() as (placement, wire_links):
        exchange = placement.open_exchange(size)
        found = [run(exchange, wire_links, forwards, step, check, placement.kill) for step in steps]
    assert [it.shape for it in found] == [(30, VOCAB_SIZE), (2, VOCAB_SIZE), (0, VOCAB_SIZE)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def run(
    exchange: StepExchange,
    links: "list[SharedMemoryLink] | list[WireLink]",
    forwards: list[ModelForward],
    batch: StepTensors,
    check: RankCheck,
    give_up: Callable[[], None],
) -> Tensor:
    """One step on every rank; the whole logits of the first."""
    descriptor = create_descriptor()
    watch = RankWatch(Mock(), 60, Mock())
    first = ShardedForward(forwards[0], exchange, watch, Arrivals(descriptor, 0, SIZE), check)
    os.close(descriptor)

    def work(group: ThreadGroup) -> Tensor | None:
        if group.rank == 0:
            try:
                return first(batch)
            except BaseException:
                give_up()  # else the others would wait for ever
                raise
        link: FirstRankLink = links[group.rank - 1]
        link.send_result(RankResult(b"", forwards[group.rank].needed(link.receive_step())))
        return None

    logits = on_every_rank(SIZE, work)[0]
    assert logits is not None
    return logits


def test_all_ranks_know_how_far_the_others_are() -> None:
    with hosts() as (placement, links), placement.arrivals.waiting(), links[0].join(1, SIZE).waiting():
        links[1].join(2, SIZE).pulse()
        expected = [(1, 0), (1, 0), (0, 1)]
        _eventually(lambda: placement.arrivals.report() == expected)
        placement.beat()
        for rank, link in enumerate(links, 1):
            _eventually(lambda: link.join(rank, SIZE).report() == expected)  # noqa: B023
            assert link.join(rank, SIZE).num_beats > 0


def test_a_rank_says_why_it_cannot_go_on(tmp_path: Path) -> None:
    missing = tmp_path / "on the first host alone"
    with hosts() as (placement, links):
        placement.start(EngineConfig(model=str(missing)), placement.membership)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("signal.pause", lambda: None)
            patch.setattr("distllm.engine.distributed.rank.bind", lambda cores: None)
            run_rank(links[1])
        _eventually(lambda: placement.fault(60) is not None)
        fault = placement.fault(60)
        words = f"rank 2 at 127.0.0.1: host {socket.gethostname()} of rank 2 has no {missing}"
        assert fault is not None
        assert fault.startswith(words)


def test_a_rank_that_is_silent_or_gone_is_at_fault() -> None:
    ((ours, theirs),) = wires(1)
    rank = RemoteRank(1, Wire(ours), Mock())
    assert rank.fault(None) is None
    assert rank.fault(60) is None
    assert rank.fault(0) == "rank 1 at 127.0.0.1 has not been heard of for 0 s"
    theirs.close()
    with pytest.raises(RankLost):
        rank.next_result()
    assert "rank 1 at 127.0.0.1 ended" in (rank.fault(None) or "")


@pytest.mark.parametrize("kind", [Kind.START, Kind.STEP, 99])
def test_what_is_not_a_rank_s_to_say_ends_its_connection(kind: int) -> None:
    ((ours, theirs),) = wires(1)
    with theirs:
        rank = RemoteRank(1, Wire(ours), Mock())
        theirs.sendall(bytes([kind, 0, 0, 0, 2]) + b"{}")
        with pytest.raises(RankLost):
            rank.next_result()
        assert rank.fault(None) is not None
        assert theirs.recv(1) == b""


def test_results_that_are_no_tensors_are_refused() -> None:
    ((ours, theirs),) = wires(1)
    with theirs:
        rank = RemoteRank(1, Wire(ours), Mock())
        theirs.sendall(bytes([Kind.RESULT, 0, 0, 0, 3]) + b"\x00\x01\xff")
        with pytest.raises(ValueError, match="tensors"):
            WireExchange([rank]).receive_results(Mock())
        rank.close()


def test_a_first_rank_without_beats_is_ended() -> None:
    descriptor = create_descriptor()
    arrivals = Arrivals(descriptor, 1, 2)
    os.close(descriptor)
    ended = threading.Event()
    watch_first_rank(arrivals, 0.05, ended.set)
    assert ended.wait(30)


def _eventually(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
