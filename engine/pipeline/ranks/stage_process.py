"""A peer's hold on the ranks of a stage: it talks to the first of them, which has started the others."""

import contextlib
import logging
import subprocess
import threading
from multiprocessing import Pipe

from torch import Tensor

from distllm.engine.batch import StepTensors
from distllm.engine.config import EngineConfig
from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.pipeline.layer_range import LayerRange
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pipeline.ranks.messages import (
    AllocatePool,
    Failed,
    LoadStage,
    Progress,
    RunStep,
    Sampled,
    StageLoaded,
    Timed,
    TimeLayer,
    ToFirstRank,
    ToPeer,
    decode_answer,
    encode,
)
from distllm.engine.progress import OnLost
from distllm.engine.progress import Progress as OnProgress
from distllm.engine.python_command import python_command


class RanksLost(ValueError):
    """The processes of a stage have ended, or cannot load it; the message says why in one line."""


class StageProcess:
    """A StageComputer in processes of its own, which end with this one, or where one of them is lost.

    `on_lost` is called once, in another thread, where they end by themselves after they have loaded the stage.
    Raises RanksLost where they cannot, as every method does once they are lost.
    """

    def __init__(self, config: EngineConfig, layers: LayerRange, on_progress: OnProgress, on_lost: OnLost) -> None:
        self._on_lost = on_lost
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                python_command("distllm.engine.pipeline.ranks.first_rank", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what libraries print is no output of the peer's
            )
        self._asking = threading.Lock()
        self._is_closed = False
        self._reason: str | None = None
        try:
            self.info = self._load(config, layers, on_progress)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._watch, name="watch-stage", daemon=True).start()

    def allocate(self, num_blocks: int) -> None:
        self._ask(AllocatePool(num_blocks=num_blocks))

    def compute(self, step: StepInput, _: StepTensors, activations: Tensor | None) -> Tensor | None:
        return self._ask(RunStep(step=step, samples=False), activations)[1]

    def sample(self, step: StepInput, activations: Tensor | None) -> StepOutput:
        answer, _ = self._ask(RunStep(step=step, samples=True), activations)
        assert isinstance(answer, Sampled)
        return answer.output

    def time_layer(self, budget_s: float) -> ComputeTimes:
        """Of a stage that is a model's last layer and its head."""
        answer, _ = self._ask(TimeLayer(budget_s=budget_s))
        assert isinstance(answer, Timed)
        return answer.times

    def close(self) -> None:
        """End them. Does nothing the second time."""
        self._is_closed = True
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _load(self, config: EngineConfig, layers: LayerRange, on_progress: OnProgress) -> ExecutorInfo:
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        answer, _ = self._ask(LoadStage(config=config, layers=layers, log_level=level))
        while isinstance(answer, Progress):
            on_progress(answer.activity, answer.done)
            answer, _ = self._receive()
        assert isinstance(answer, StageLoaded)
        return answer.info

    def _ask(self, request: ToFirstRank, tensor: Tensor | None = None) -> tuple[ToPeer, Tensor | None]:
        with self._asking:
            with contextlib.suppress(OSError):  # it has ended, as the answer will tell
                self._connection.send_bytes(encode(request, tensor))
            return self._receive()

    def _receive(self) -> tuple[ToPeer, Tensor | None]:
        try:
            answer, tensor = decode_answer(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise RanksLost(self._why_ended()) from None
        if isinstance(answer, Failed):
            self._reason = answer.reason
            raise RanksLost(answer.reason)
        return answer, tensor

    def _watch(self) -> None:
        self._process.wait()
        if self._is_closed:
            return
        with self._asking, contextlib.suppress(RanksLost):  # its last words, unless they were an answer
            self._receive()
        self._on_lost(self._why_ended())

    def _why_ended(self) -> str:
        if self._reason is not None:
            return self._reason
        code = self._process.wait()
        return f"the first rank ended ({f'signal {-code}' if code < 0 else f'exit status {code}'})"
