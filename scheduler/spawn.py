"""Starts engine processes and talks to one: the parent's handle. Knows nothing of requests."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Sequence

from distllm.engine.python_command import python_command
from distllm.scheduler.channel import AsyncChannel
from distllm.scheduler.messages import FromEngine, Shutdown, StartEngine, ToEngine

ENGINE_COMMAND = python_command("distllm.scheduler.process")

_SEND_BUFFER_BYTES = 4 << 20


class CannotSpawn(Exception):
    """The system gives no process, memory or file descriptor for an engine at the moment."""


class EngineProcess:
    """One running engine process and the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: AsyncChannel[FromEngine]) -> None:
        self._process = process
        self._channel = channel

    @classmethod
    async def spawn(cls, start: StartEngine, command: Sequence[str] = ENGINE_COMMAND) -> "EngineProcess":
        """Start `command` with the number of its socket added.

        It names a module, so that a caller's script needs no `__main__` guard. A start that is cancelled leaves no
        process behind. Raises CannotSpawn.
        """
        starting = asyncio.ensure_future(cls._start(start, command))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            engine = await starting
            engine.kill()
            await engine.describe_end()
            raise

    @classmethod
    async def _start(cls, start: StartEngine, command: Sequence[str]) -> "EngineProcess":
        try:
            ours, process = await _start_process(command, _inherited(start))
        except OSError as error:
            raise CannotSpawn(f"no process can be started: {error.strerror or error}") from None
        ours.setblocking(False)
        channel: AsyncChannel[FromEngine] = await AsyncChannel.open(ours, FromEngine)
        channel.send(start)
        return cls(process, channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        self._channel.send(message)

    async def receive(self) -> FromEngine:
        """Raises ChannelClosed once the process has gone."""
        return await self._channel.receive()

    async def describe_end(self) -> str:
        """Wait for the process to end and say how it did."""
        code = await self._process.wait()
        self._channel.close()
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    async def stop(self, grace_s: float) -> None:
        """End the process: by request, and by force when it has not gone after `grace_s` seconds."""
        self.send(Shutdown())
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        finally:
            self._channel.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def _start_process(
    command: Sequence[str], inherited: Sequence[int]
) -> tuple[socket.socket, asyncio.subprocess.Process]:
    """A process and our end of the socket to it."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(), *inherited),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is the front end's to handle
            )
    except BaseException:
        ours.close()
        raise
    return ours, process


def _inherited(start: StartEngine) -> tuple[int, ...]:
    """Descriptors that the engine finds under the numbers that its config tells."""
    launched = start.engine.launched
    return () if launched is None else (launched.listener,)
