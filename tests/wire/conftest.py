"""OpenAI's wire, held against a server: --base-url URL, DISTLLM_WIRE_URL, or our own with the embedded model.

Every file here is an area; the terminal summary prints the score of each. Tests marked as extensions ask for what
OpenAI's API lacks and count apart, so that the score of another server is fair.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio

API_KEY = os.environ.get("DISTLLM_WIRE_API_KEY", "none")
TIMEOUT_S = 60.0
EXTENSIONS = "extensions"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-url", default=None, help="server to hold tests/wire against, without /v1")


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest) -> str:
    """The server under test; ours is started where none is named."""
    named: str | None = request.config.getoption("--base-url", default=None) or os.environ.get("DISTLLM_WIRE_URL")
    url: str = named or request.getfixturevalue("embedded_server").url
    return url.rstrip("/").removesuffix("/v1")


@pytest.fixture(scope="session")
def http(base_url: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def model(http: httpx.Client) -> str:
    """The first model that the server lists."""
    name: str = http.get("/v1/models").json()["data"][0]["id"]
    return name


@pytest.fixture
def sdk(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S) as client:
        yield client


@pytest_asyncio.fixture
async def async_sdk(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line an area: how many of its tests passed. Extensions are an area of their own, outside of the sum."""
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            if report.when == ("setup" if outcome == "error" else "call") and "tests/wire/" in report.nodeid:
                area = _area(report)
                total[area] += 1
                passed[area] += outcome == "passed"
    if not total:
        return
    terminalreporter.section("OpenAI wire score")
    extensions = passed.pop(EXTENSIONS, 0), total.pop(EXTENSIONS, 0)
    for area in sorted(total):
        terminalreporter.write_line(f"{area:<12} {passed[area]:>3} of {total[area]}")
    terminalreporter.write_line(f"{'all':<12} {passed.total():>3} of {total.total()}")
    terminalreporter.write_line(f"{EXTENSIONS:<12} {extensions[0]:>3} of {extensions[1]}, not part of OpenAI's API")


def _area(report: pytest.TestReport) -> str:
    if "extension" in report.keywords:
        return EXTENSIONS
    return Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")
