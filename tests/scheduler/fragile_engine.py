"""An engine process without a model: `python -m tests.scheduler.fragile_engine FD`.

What it is asked to load decides how it fails; so do prompts: a step that computes POISON ends the process, as does
the second step of a sequence that starts with LATE_POISON, whether computed at once or anew. Asked to load a file
that does not exist, it makes that and waits for a process that is stopped. "clustered" has peers; "waiting" has too
few, says so all the time, and takes WAIT_S for its first step.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from distllm.engine.config import EngineConfig
from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.pipeline.coordinator.snapshot import OnCluster
from distllm.engine.progress import OnLost, Progress
from distllm.scheduler.process import main
from tests.clusters import sample_cluster
from tests.scheduler.slot_executor import SlotExecutor, executor_info

POISON = [6, 6, 6]
LATE_POISON = [5, 5, 5]
STEP_S = 0.002
WAIT_S = 3.0


class FragileExecutor(SlotExecutor):
    """`dies_in_decode`: every second step of any sequence ends the process."""

    def __init__(self, info: ExecutorInfo, dies_in_decode: bool, first_step_s: float) -> None:
        super().__init__(info)
        self._next_step_s = first_step_s
        self._dies_in_decode = dies_in_decode
        self._late_poisons: set[int] = set()

    def execute(self, step: StepInput) -> StepOutput:
        for chunk in step.chunks:
            start = list(chunk.token_ids[:3]) if chunk.num_computed_before == 0 else []
            if start == POISON or chunk.sequence_id in self._late_poisons:
                os.kill(os.getpid(), signal.SIGKILL)
            if start == LATE_POISON or self._dies_in_decode:
                self._late_poisons.add(chunk.sequence_id)
        time.sleep(self._next_step_s or STEP_S)
        self._next_step_s = STEP_S
        return super().execute(step)


def build(config: EngineConfig, on_progress: Progress, _on_lost: OnLost, on_cluster: OnCluster) -> FragileExecutor:
    on_progress("pretending", 0.5)
    if config.model == "broken":
        raise ValueError("this checkpoint is broken")
    if config.model == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if (mark := Path(config.model)).is_absolute() and not mark.exists():
        mark.touch()
        rank = subprocess.Popen(["sleep", "60"])
        os.kill(rank.pid, signal.SIGSTOP)
        rank.wait()
    if config.model == "clustered":
        on_cluster(sample_cluster())
    if config.model == "waiting":
        threading.Thread(target=wait_for_peers, args=(on_cluster,), daemon=True).start()
    info = executor_info(num_blocks=256, block_size=4, max_model_len=400)
    info = replace(info, numerics=config.numerics or f"those of process {os.getpid()}")
    return FragileExecutor(info, config.model == "doomed", WAIT_S if config.model == "waiting" else 0.0)


def wait_for_peers(on_cluster: OnCluster) -> None:
    while True:
        on_cluster(sample_cluster(waiting="0 of 1"))
        time.sleep(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), build)
