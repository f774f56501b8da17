"""Runs steps on one device, in the caller's thread."""

from concurrent.futures import Future

from distllm.engine.interface import ExecutorInfo, StepInput, StepOutput
from distllm.engine.model_runner import ModelRunner


class LocalExecutor:
    """An Executor whose `submit` returns after the step."""

    max_in_flight = 1

    def __init__(self, runner: ModelRunner, info: ExecutorInfo) -> None:
        self._runner: ModelRunner | None = runner
        self._info = info

    @property
    def runner(self) -> ModelRunner:
        assert self._runner is not None, "the executor was closed"
        return self._runner

    @property
    def info(self) -> ExecutorInfo:
        return self._info

    def submit(self, step: StepInput) -> "Future[StepOutput]":
        """Run the step. What goes wrong with all of it is the future's exception, not raised here."""
        future: Future[StepOutput] = Future()
        try:
            future.set_result(self.runner.run(step))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Give the model's and the cache's memory back."""
        self._runner = None
