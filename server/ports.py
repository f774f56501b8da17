"""What the front end asks of an engine: scheduler.client.EngineClient, or the small one that tests have."""

from types import TracebackType
from typing import Protocol, Self

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot
from distllm.engine.pipeline.placement.routing import Route
from distllm.scheduler.client import EngineState
from distllm.scheduler.latest import Latest
from distllm.scheduler.messages import EngineRequest, Loading, SequenceOutput
from distllm.scheduler.stats import EngineStats


class OutputStream(Protocol):
    """Outputs of one request. Leaving the block aborts whatever has not finished."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> SequenceOutput: ...

    def abort_sequence(self, index: int) -> None: ...


class EngineView(Protocol):
    """What is known of an engine, or of several as one. `info` and `wait_ready` raise EngineUnavailable.

    `failure` says why no requests are run, None where they are. `wait_admitting` returns once it has started,
    whatever came of that, or is about to end.
    """

    @property
    def stats(self) -> EngineStats: ...

    @property
    def loading(self) -> Loading | None: ...

    @property
    def num_restarts(self) -> int: ...

    @property
    def cluster(self) -> Latest[ClusterSnapshot | None]: ...

    @property
    def state(self) -> EngineState: ...

    @property
    def failure(self) -> str | None: ...

    @property
    def info(self) -> ExecutorInfo: ...

    @property
    def seconds_since_progress(self) -> float: ...

    async def wait_ready(self) -> None: ...

    async def wait_admitting(self) -> None: ...


class RequestRunner(Protocol):
    """What a generation asks of an engine. `submit` raises QueueFull, EngineDraining or EngineUnavailable."""

    @property
    def state(self) -> EngineState: ...

    def submit(self, request: EngineRequest) -> OutputStream: ...


class RoutedRunner(RequestRunner, Protocol):
    """Runs one client's request. `route_now` is where: another than before, once one of its prompts was moved."""

    @property
    def route_now(self) -> Route: ...


class Engine(EngineView, RequestRunner, Protocol):
    """Runs requests."""
