"""A headless Chromium, driven over its DevTools protocol; DISTLLM_CHROMIUM names one that is not on the PATH."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1200,900")
_LISTENING = re.compile(rb"DevTools listening on ws://([^/]+)/")


def find_chromium() -> str | None:
    return os.environ.get("DISTLLM_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


class Tab:
    """One page. `problems` are errors and refusals that its console has shown."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self.problems: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        """The result of a DevTools command."""
        call_id = next(self._ids)
        await self._connection.send(json.dumps({"id": call_id, "method": method, "params": params}))
        async for text in self._connection:
            message = json.loads(text)
            if message.get("id") == call_id:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)
        raise AssertionError("the browser has gone")

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which may be a promise."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        """Return once an expression is true; fails after 20 seconds."""
        async with asyncio.timeout(120):
            while not await self.evaluate(expression):  # noqa: ASYNC110 - the browser is another program
                await asyncio.sleep(0.05)

    def _note(self, message: dict[str, Any]) -> None:
        match message["method"]:
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.problems.append(json.dumps(message["params"]))


@contextlib.asynccontextmanager
async def browse(chromium: str, url: str, profile: Path) -> AsyncIterator[Tab]:
    """A tab that shows `url`; the browser ends with the block."""
    process = await asyncio.create_subprocess_exec(
        chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank", stdout=DEVNULL, stderr=PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while (match := _LISTENING.search(await process.stderr.readline())) is None:
                assert process.returncode is None
        draining = asyncio.create_task(process.stderr.read())
        async with httpx.AsyncClient(trust_env=False) as client:
            targets = (await client.get(f"http://{match[1].decode()}/json/list")).json()
        [page] = [target for target in targets if target["type"] == "page"]
        async with connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
            tab = Tab(connection)
            for domain in ("Runtime", "Log", "Page"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            yield tab
    finally:
        process.terminate()
        await process.wait()
        await draining
