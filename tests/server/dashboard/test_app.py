"""The page's files, its stream, and who may ask for them."""

import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from distllm.server.cluster_config import CoordinatorSection
from distllm.server.config import ClusterSection
from distllm.server.dashboard import app as dashboard
from distllm.server.dashboard.serving import page_names, serve_page, show_cluster
from tests.clusters import sample_cluster
from tests.server.fake_engine import FakeEngine

PAGE = Path(dashboard.__file__).parent / "page"


@contextlib.asynccontextmanager
async def page_of(engine: FakeEngine, hosts: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with serve_page(engine, hosts, listener), httpx.AsyncClient(base_url=url, timeout=10) as client:
            yield client
            engine.cluster.close()


async def reports_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def test_the_page_and_what_it_needs_are_served(engine: FakeEngine) -> None:
    async with page_of(engine, ["127.0.0.1"]) as client:
        for path, kind in (("/", "text/html"), ("/cluster.css", "text/css"), ("/cluster.js", "text/javascript")):
            response = await client.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/nowhere")).status_code == 404


async def test_the_stream_tells_the_present_state_and_every_change(engine: FakeEngine) -> None:
    engine.cluster.replace(sample_cluster())
    async with page_of(engine, ["127.0.0.1"]) as client, client.stream("GET", "/events") as response:
        reports = reports_of(response)
        first = await anext(reports)
        assert first["cluster"]["epoch"] == 7
        assert first["state"] == "ready"
        assert first["stats"]["num_blocks"] == 1000
        assert first["cluster"]["peers"][2]["state"] == "spare"
        engine.cluster.replace(sample_cluster(epoch=8, waiting="1 of 2"))
        second = await anext(reports)
        assert (second["cluster"]["epoch"], second["cluster"]["waiting"]) == (8, "1 of 2")
        engine.cluster.replace(None)
        assert (await anext(reports))["cluster"] is None


async def test_a_slow_reader_gets_the_newest_and_not_all(engine: FakeEngine) -> None:
    frames = dashboard.reports(engine)
    await anext(frames)
    for epoch in range(5):
        engine.cluster.replace(sample_cluster(epoch=epoch))
    assert json.loads((await anext(frames)).removeprefix(b"data: "))["cluster"]["epoch"] == 4


async def test_the_end_of_the_engine_ends_the_stream_in_order(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with page_of(engine, ["127.0.0.1"]) as client, client.stream("GET", "/events") as response:
        reports = reports_of(response)
        await anext(reports)
        engine.cluster.close()
        with pytest.raises(StopAsyncIteration):
            await anext(reports)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_another_site_s_name_for_this_address_is_refused(engine: FakeEngine) -> None:
    async with page_of(engine, page_names("127.0.0.1")) as client:
        for path in ("/", "/events"):
            assert (await client.get(path, headers={"host": "evil.example"})).status_code == 400
        assert (await client.get("/", headers={"host": "localhost:8080"})).status_code == 200
        assert (await client.get("/", headers={"host": "[::1]:8080"})).status_code == 200


@pytest.mark.parametrize(
    ("host", "dashboard_host", "page_host"),
    [
        ("0.0.0.0", None, "127.0.0.1"),
        ("10.0.0.1", None, "127.0.0.1"),
        ("gpu-1.example", None, "127.0.0.1"),
        ("127.0.0.5", None, "127.0.0.5"),
        ("::1", None, "::1"),
        ("127.0.0.1", "0.0.0.0", "0.0.0.0"),
    ],
)
def test_the_page_is_for_this_machine_unless_told_otherwise(
    host: str, dashboard_host: str | None, page_host: str
) -> None:
    assert CoordinatorSection(host=host, dashboard_host=dashboard_host).page_host == page_host


async def test_a_coordinator_has_a_page_and_a_taken_port_does_not_stop_it(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = tmp_path / "cluster.yaml"
        config.write_text(f"coordinator: {{dashboard_port: {port}}}")
        async with show_cluster(ClusterSection(coordinator=config), engine):
            pass
    assert "coordinator.dashboard_port" in caplog.text
    async with show_cluster(ClusterSection(coordinator=config), engine), httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


async def test_a_server_without_a_cluster_has_no_page(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distllm.server.dashboard.serving.listen", None)
    async with show_cluster(ClusterSection(), engine):
        pass


class Markup(HTMLParser):
    """Ids, and everything that a page loads or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href"):
                self.loaded.append(str(value))
            if name.startswith("on") or name == "style":
                self.handlers.append(name)


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    markup = Markup()
    markup.feed((PAGE / "cluster.html").read_text())
    assert sorted(markup.loaded) == ["cluster.css", "cluster.js", "data:,"]
    assert markup.handlers == []
    assert len(markup.ids) == len(set(markup.ids))
    for name in ("cluster.html", "cluster.css", "cluster.js"):
        assert not re.search("//(?! )", (PAGE / name).read_text()), "only comments have a space there"


def test_no_text_is_ever_read_as_html() -> None:
    script = (PAGE / "cluster.js").read_text()
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert sink not in script
