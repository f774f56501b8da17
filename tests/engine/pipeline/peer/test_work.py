"""What a peer counts of its work."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import msgspec
import torch
from torch import Tensor

from distllm.engine.interface import BlockId, SequenceChunk, SequenceId, StepInput, StepOutput
from distllm.engine.pipeline.delivery import Status
from distllm.engine.pipeline.messages import STEP, Endpoint, Fence, StepHeader, Work
from distllm.engine.pipeline.peer.edge import Edge
from distllm.engine.pipeline.peer.stage import Stage
from distllm.engine.pipeline.peer.steps import Epoch, StepRunner
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.client import Http2Client
from distllm.engine.pipeline.wire.frame import Frame, decode_frame, encode_frame
from tests.engine.pipeline.coordinator.fake_peers import WHOLE
from tests.engine.pipeline.waiting import until

ACTIVATIONS = torch.ones(4, 8)
STEP_S = 0.02
STEP_INPUT = StepInput(1, [SequenceChunk(SequenceId(1), [1, 2, 3, 4], 0, [BlockId(0)], sample=None)])


class SlowStage:
    def run(self, step: StepInput, activations: Tensor | None, *, is_rebuild: bool) -> Tensor:
        time.sleep(STEP_S)
        return ACTIVATIONS


class Successor:
    """Takes a frame at the second attempt."""

    def __init__(self) -> None:
        self.num_bytes: list[int] = []

    async def post(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        self.num_bytes.append(len(body))
        status = Status.NOT_YET if len(self.num_bytes) == 1 else Status.ACCEPTED
        await asyncio.sleep(STEP_S)
        return status, b""


@contextlib.asynccontextmanager
async def running(successor: Successor, number: int) -> AsyncIterator[StepRunner]:
    """A runner that is stage `number` of an epoch."""

    async def send_result(_: StepHeader, __: StepOutput) -> None:
        raise AssertionError("this is not the last stage")

    with ThreadPoolExecutor(1) as compute:
        runner = StepRunner(compute, send_result, lambda trouble: None)
        fence = Fence(
            epoch=1,
            config=WHOLE,
            number=number,
            num_blocks=8,
            predecessor=None,
            successor=Endpoint(peer_id="p2", host="10.0.0.2", port=1),
        )
        client = cast(Http2Client, successor)
        edge = Edge(PeerId("p2"), client, client)
        runner.begin_epoch(Epoch(fence, cast(Stage, SlowStage()), edge))
        task = asyncio.create_task(runner.run())
        yield runner
        task.cancel()


def step_frame(number: int, last_stage: int = 2) -> Frame:
    header = StepHeader(
        epoch=1,
        number=number,
        first_stage=0,
        last_stage=last_stage,
        is_rebuild=False,
        step=msgspec.Raw(msgspec.msgpack.encode(STEP_INPUT)),
    )
    data = b"".join(encode_frame(STEP, header))
    return decode_frame(data, len(data))


async def settled(runner: StepRunner, num_sent: int) -> Work:
    await until(lambda: runner.work.num_sent >= num_sent)
    return runner.work


async def test_steps_and_frames_are_counted_with_their_time() -> None:
    successor = Successor()
    async with running(successor, number=0) as runner:
        for number in range(2):
            assert runner.take(None, step_frame(number)) is Status.ACCEPTED
        work = await settled(runner, 2)
    assert work.num_steps == 2
    assert work.compute_s >= 2 * STEP_S
    assert work.num_sent == 2
    assert work.sent_bytes == sum(successor.num_bytes[1:]), "a frame counts once, however often it was offered"
    assert work.send_s >= 3 * STEP_S, "until it was taken"


async def test_a_step_that_only_passes_by_is_no_work() -> None:
    async with running(Successor(), number=2) as runner:
        runner.take(None, step_frame(0, last_stage=1))
        work = await settled(runner, 1)
    assert (work.num_steps, work.compute_s) == (0, 0.0)
