"""What a peer has in memory: on the device, streamed where it is told to, and loaded anew where ranks were lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import psutil
import pytest

from distllm.engine.config import EngineConfig
from distllm.engine.executor.pipeline import describe_model
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.peer.loaded_stages import LoadedStages
from distllm.engine.pipeline.ranks.stage_process import RanksLost
from distllm.engine.pipeline.weights.stage_weights import StageWeights
from distllm.engine.progress import Progress
from tests.engine.pipeline.stages import config_of

TIMEOUT_S = 60.0


class AllHere:
    """Weights that need not be obtained."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def obtain(self, config: StageConfig, on_progress: Progress) -> Path:
        return self._path


class Stages:
    """Those of a peer that has the model, and which of them it was told are lost."""

    def __init__(self, path: Path, here: EngineConfig) -> None:
        self.losses: asyncio.Queue[tuple[StageConfig, str]] = asyncio.Queue()
        self._compute = ThreadPoolExecutor(1)
        self.whole = describe_model(config_of(path), "")

        def on_lost(config: StageConfig, reason: str) -> None:
            self.losses.put_nowait((config, reason))

        self.loaded = LoadedStages(cast(StageWeights, AllHere(path)), here, self._compute, on_lost)

    def config(self, begin: int, end: int) -> StageConfig:
        return msgspec.structs.replace(self.whole, begin=begin, end=end)

    def close(self) -> None:
        self.loaded.close()
        self._compute.shutdown()


@pytest.fixture
async def make_stages(checkpoint: Callable[[str], Path]) -> AsyncIterator[Callable[..., Stages]]:
    made: list[Stages] = []

    def make(**changes: object) -> Stages:
        here = EngineConfig(model="", device="cpu", num_threads=1)
        made.append(Stages(checkpoint("llama"), replace(here, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for stages in made:
        stages.close()


def ignore(*_: object) -> None:
    """What nothing is done with."""


async def test_layers_without_room_stream_from_disk(make_stages: Callable[..., Stages], tmp_path: Path) -> None:
    stages = make_stages()
    resident = (await stages.loaded.get(stages.config(0, 3), ignore)).info
    assert resident.streamed_bytes == 0
    limit = int(resident.weight_bytes * 0.85)
    stages = make_stages(offload="disk", offload_dir=str(tmp_path), weights_bytes=limit)
    streaming = (await stages.loaded.get(stages.config(0, 3), ignore)).info
    assert streaming.weight_bytes == resident.weight_bytes
    assert streaming.streamed_bytes > 0


async def test_a_stage_whose_ranks_were_lost_is_told_and_loaded_anew(make_stages: Callable[..., Stages]) -> None:
    stages, others = make_stages(tensor_parallel_size=2), set(psutil.Process().children())
    config = stages.config(0, 1)
    first = await stages.loaded.get(config, ignore)
    assert first.info.num_ranks == 2
    assert await stages.loaded.get(config, ignore) is first
    (process,) = set(psutil.Process().children()) - others
    process.children()[0].kill()
    assert await asyncio.wait_for(stages.losses.get(), TIMEOUT_S) == (config, "rank 1 ended (signal 9)")
    assert await stages.loaded.get(config, ignore) is not first
    (process,) = set(psutil.Process().children()) - others
    stages.loaded.keep([])
    assert not (await asyncio.to_thread(psutil.wait_procs, [process], TIMEOUT_S))[1], "its memory is given back"
    assert stages.losses.empty(), "what nobody wants is not lost"


async def test_what_ranks_cannot_load_is_refused_in_one_line(make_stages: Callable[..., Stages]) -> None:
    stages = make_stages(tensor_parallel_size=2)
    config = msgspec.structs.replace(stages.config(0, 1), num_layers=4)
    with pytest.raises(RanksLost, match=r"has 3 layers, and the stage is one of 4"):
        await stages.loaded.get(config, ignore)
