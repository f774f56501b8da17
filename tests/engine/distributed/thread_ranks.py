"""Ranks that are threads of the test's process: the same sums in the same order, without processes to start."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from torch import Tensor

from distllm.engine import served_model

Result = TypeVar("Result")


class ThreadGroup:
    """A RankGroup over threads that hand each other their tensors."""

    def __init__(self, rank: int, exchange: "_Exchange") -> None:
        self.rank = rank
        self.size = exchange.size
        self.local_rank = rank
        self.host = 0
        self._exchange = exchange

    def sum_rows(self, rows: Tensor) -> Tensor:
        assert rows.is_contiguous()
        parts: list[Tensor] = self._exchange.swap(self.rank, rows.clone())
        first, *others = parts
        total = first.float()
        for other in others:
            total = total + other.float()
        return total.to(rows.dtype)

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        return self._exchange.swap(self.rank, list(numbers))

    def pulse(self) -> None:
        """Nobody looks after threads."""


class _Exchange:
    def __init__(self, size: int) -> None:
        self.size = size
        self._slots: list[object] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def swap(self, rank: int, value: object) -> list:  # type: ignore[type-arg]
        """Give `value`, get every rank's."""
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def abort(self) -> None:
        self._barrier.abort()


@contextmanager
def loading_in_turn() -> Iterator[None]:
    """transformers patches its own classes while it builds a model: rank by rank, where ranks are threads."""
    lock = threading.Lock()

    def in_turn(build: Callable[..., Result]) -> Callable[..., Result]:
        def locked(*args: Any, **kwargs: Any) -> Result:
            with lock:
                return build(*args, **kwargs)

        return locked

    with pytest.MonkeyPatch.context() as patch:
        for builder in ("load_part", "plan_stage"):
            patch.setattr(served_model, builder, in_turn(getattr(served_model, builder)))
        yield


def on_every_rank(size: int, task: Callable[[ThreadGroup], Result]) -> list[Result]:
    """Run `task` on `size` ranks at once; the results in the order of the ranks. Raises what a rank raised."""
    exchange = _Exchange(size)

    def run(rank: int) -> Result:
        try:
            return task(ThreadGroup(rank, exchange))
        except BaseException:
            exchange.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return [future.result() for future in futures]
