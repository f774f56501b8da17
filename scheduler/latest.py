"""A value that is replaced now and then, and those who follow it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """Belongs to one event loop. A follower that is slow misses values, never the newest."""

    def __init__(self, value: Value) -> None:
        self._value = value
        self._replaced = asyncio.Event()

    @property
    def value(self) -> Value:
        return self._value

    def replace(self, value: Value) -> None:
        self._value = value
        self._replaced.set()
        self._replaced = asyncio.Event()

    def close(self) -> None:
        """Whoever follows has reached the end. Nothing may come any more."""
        self._replaced.set()

    async def follow(self) -> AsyncIterator[Value]:
        """The present value, and every time it has been replaced the one that is then the newest."""
        replaced = self._replaced
        yield self._value
        await replaced.wait()
        while replaced is not self._replaced:
            replaced = self._replaced
            yield self._value
            await replaced.wait()
