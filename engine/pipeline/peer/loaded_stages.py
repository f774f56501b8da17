"""The stages that a peer has in memory. They are loaded one at a time, with weights from wherever these are."""

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from distllm.engine.config import EngineConfig
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.peer.progress_display import ProgressDisplay
from distllm.engine.pipeline.peer.stage import Stage, load_stage
from distllm.engine.pipeline.weights.stage_weights import StageWeights
from distllm.engine.progress import Progress

OnStageLost = Callable[[StageConfig, str], None]
"""Hears in the event loop of a stage whose processes have ended, and why."""


class LoadedStages:
    """Runs in an event loop, and loads in `compute`, on what `here` says of this machine.

    Where ranks share a stage, it may be lost: `on_lost` hears of that, and `get` loads it anew.
    """

    def __init__(self, weights: StageWeights, here: EngineConfig, compute: Executor, on_lost: OnStageLost) -> None:
        self._weights = weights
        self._here = here
        self._compute = compute
        self._on_lost = on_lost
        self._stages: dict[StageConfig, Stage] = {}
        self._lock = asyncio.Lock()
        self._display = ProgressDisplay()

    def keep(self, configs: Collection[StageConfig]) -> None:
        """Give back the memory of all others."""
        loop = asyncio.get_running_loop()
        for config in self._stages.keys() - set(configs):
            loop.run_in_executor(None, self._stages.pop(config).close)

    def close(self) -> None:
        """Leave none."""
        for stage in self._stages.values():
            stage.close()
        self._stages.clear()

    async def get(self, config: StageConfig, on_progress: Progress) -> Stage:
        """The stage, which is loaded unless it is there. `on_progress` is called in the event loop.

        Raises CheckpointError, OutOfMemory, ValueError or OSError, each with one line for the operator.
        """
        if config not in self._stages:
            async with self._lock:  # a coordinator that has connected anew asks for the same stage again
                if config not in self._stages:
                    self._stages[config] = await self._load(config, on_progress)
        return self._stages[config]

    async def _load(self, config: StageConfig, on_progress: Progress) -> Stage:
        loop = asyncio.get_running_loop()

        def show(activity: str, done: float) -> None:
            self._display.show(activity, done)
            on_progress(activity, done)

        def show_from_thread(activity: str, done: float) -> None:
            loop.call_soon_threadsafe(show, activity, done)

        def lose_from_thread(reason: str) -> None:
            loop.call_soon_threadsafe(self._lose, config, reason)

        try:
            path = await self._weights.obtain(config, show_from_thread)
            here = replace(self._here, model=str(path))
            return await loop.run_in_executor(
                self._compute, partial(load_stage, config, here, show_from_thread, lose_from_thread)
            )
        finally:
            self._display.close()

    def _lose(self, config: StageConfig, reason: str) -> None:
        stage = self._stages.pop(config, None)
        if stage is not None:
            stage.close()
            self._on_lost(config, reason)
