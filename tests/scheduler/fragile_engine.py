"""An engine process without a model: `python -m tests.scheduler.fragile_engine FD`.

What it is asked to load decides how it fails; a step that computes the prompt POISON ends the process.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

from distllm.engine.config import EngineConfig
from distllm.engine.interface import StepInput, StepOutput
from distllm.scheduler.process import main
from tests.scheduler.slot_executor import SlotExecutor, executor_info

POISON = [6, 6, 6]
STEP_S = 0.002


class FragileExecutor(SlotExecutor):
    def execute(self, step: StepInput) -> StepOutput:
        if any(list(chunk.token_ids[: len(POISON)]) == POISON for chunk in step.chunks):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(STEP_S)
        return super().execute(step)


def build(config: EngineConfig, on_progress: Callable[[str, float], None]) -> FragileExecutor:
    on_progress("pretending", 0.5)
    if config.model == "broken":
        raise ValueError("this checkpoint is broken")
    if config.model == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return FragileExecutor(executor_info(num_blocks=256, block_size=4, max_model_len=400))


if __name__ == "__main__":
    main(int(sys.argv[1]), build)
