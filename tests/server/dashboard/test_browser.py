"""What people see: the page in a headless Chromium."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from distllm.engine.pipeline.coordinator.snapshot import ClusterEvent
from distllm.scheduler.messages import Loading
from distllm.scheduler.stats import EngineStats
from distllm.server.dashboard.serving import serve_page
from tests.clusters import peer, sample_cluster, stage
from tests.server.dashboard.browser import Tab, browse, find_chromium
from tests.server.fake_engine import FakeEngine

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
HOSTILE = '<img src=x onerror="window.hacked=1"><b>p1</b>'


@contextlib.asynccontextmanager
async def page_of(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Tab]:
    assert CHROMIUM is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        async with serve_page(engine, ["127.0.0.1"], listener):
            async with browse(CHROMIUM, url, tmp_path / "profile") as tab:
                yield tab
            engine.cluster.close()


async def texts(tab: Tab, selector: str) -> Any:
    return await tab.evaluate(f"[...document.querySelectorAll({selector!r})].map(it => it.innerText)")


async def figure(tab: Tab, name: str) -> Any:
    return await tab.evaluate(
        f"[...document.querySelectorAll('dt')].find(it => it.innerText === {name!r})?.nextSibling.innerText"
    )


async def test_the_page_draws_the_plan_as_a_chain_and_follows_it(engine: FakeEngine, tmp_path: Path) -> None:
    engine.cluster.replace(sample_cluster())
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('.stage').length === 2")
        boxes = await texts(tab, "#chain > li")
        assert [box.splitlines()[0] for box in boxes] == ["p1", "3.00 ms a frame", "p2", "p3"]
        assert "layers 0–2" in boxes[0]
        assert "step 13 ms, alone 10 ms predicted" in boxes[0]
        assert "weights 3.0 MiB, w8" in boxes[0]
        assert "2 ranks" in boxes[0]
        assert "step –" in boxes[2]
        assert "delay 1.00 ms" in boxes[1]
        (predicted,) = await texts(tab, "#prediction")
        assert "TTFT 500 ms and TPOT 25 ms" in predicted
        assert "bound by compute of p1" in predicted
        assert "1.9 MiB/s" in boxes[1]
        assert boxes[3].splitlines()[1] == "spare"
        assert await texts(tab, "#state") == ["ready"]
        assert len(await texts(tab, "#peers tr")) == 3
        assert await figure(tab, "Last recovery") == "250 ms"
        events = await texts(tab, "#events li")
        assert "after 250 ms" in events[0]
        assert "p4" in events[1]

        recovered = ClusterEvent(1001.0, "recovered", "p1 -> p3", duration_ms=31.0)
        engine.cluster.replace(
            sample_cluster(
                epoch=8,
                time_s=1001.0,
                stages=[stage("p1", 0, 3), stage("p3", 3, 6)],
                peers=[peer("p1", 0), peer("p3", 1)],
                events=[recovered],
            )
        )
        await tab.wait_for("document.querySelectorAll('#peers tr').length === 2")
        assert [box.splitlines()[0] for box in await texts(tab, ".stage")] == ["p1", "p3"]
        assert len(await texts(tab, "#events li")) == 1
        assert tab.problems == []


async def test_tokens_a_second_are_those_between_two_reports(engine: FakeEngine, tmp_path: Path) -> None:
    engine.cluster.replace(sample_cluster())
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('dt').length > 0")
        assert await figure(tab, "Tokens a second") == "–"
        engine.stats = EngineStats(generation_tokens_total=120)
        worked = msgspec.structs.replace(peer("p1", 0), compute_s_total=1.0)
        engine.cluster.replace(sample_cluster(time_s=1002.0, peers=[worked]))
        await tab.wait_for("document.querySelector('#figures')?.innerText.includes('60')")
        assert await figure(tab, "Tokens a second") == "60"
        assert await texts(tab, "#peers [data-label=Load]") == ["25 %"]


async def test_the_page_says_what_the_cluster_waits_for(engine: FakeEngine, tmp_path: Path) -> None:
    engine.state, engine.loading = "starting", Loading("waiting for peers", 0.0)
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelector('#notice')?.innerText === 'waiting for peers'")
        assert await texts(tab, "#state") == ["starting"]
        engine.state, engine.loading = "ready", None
        engine.cluster.replace(sample_cluster(waiting="0 of 1", is_serving=False, stages=[], peers=[]))
        await tab.wait_for("document.querySelector('#notice')?.innerText === '0 of 1'")
        assert await texts(tab, "#state") == ["waiting"]
        assert await texts(tab, "#chain") == ["No peer is here. distllm token prints the command to add one."]


async def test_a_loss_is_shown_for_as_long_as_nothing_runs(engine: FakeEngine, tmp_path: Path) -> None:
    paused = msgspec.structs.replace(peer("p1", 0), state="spare")
    lost = ClusterEvent(1000.0, "suspected", "it has been silent for 800 ms", "p2")
    engine.cluster.replace(
        sample_cluster(time_s=1003.25, is_serving=False, peers=[paused], events=[lost, *sample_cluster().events])
    )
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('.stage').length === 2")
        assert await texts(tab, "#state") == ["recovering"]
        assert await texts(tab, "#notice") == ["p2 was lost 3.3 s ago: it has been silent for 800 ms"]
        boxes = await texts(tab, ".stage")
        assert [box.splitlines()[2] for box in boxes] == ["paused", "gone"]
        assert "paused" in (await texts(tab, "#peers tr"))[0]


async def test_peers_that_are_no_use_say_why(engine: FakeEngine, tmp_path: Path) -> None:
    full = msgspec.structs.replace(peer("p3", None, "cannot load [0, 3): no room"), state="unusable")
    out = msgspec.structs.replace(peer("p4", None), state="removed", removed_s=999.0)
    engine.cluster.replace(sample_cluster(peers=[peer("p1", 0), peer("p2", 1), full, out]))
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('#peers tr').length === 4")
        assert await texts(tab, ".spare") == ["p3\nunusable\ncannot load [0, 3): no room"]
        states = await texts(tab, "#peers td:nth-child(2)")
        assert states[:3] == ["serving", "serving", "unusable\ncannot load [0, 3): no room"]
        assert states[3].startswith("removed\nput out at ")


async def test_a_long_epoch_is_shown_by_its_last_digits(engine: FakeEngine, tmp_path: Path) -> None:
    engine.cluster.replace(sample_cluster(epoch=1795810234821))
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('dt').length > 0")
        assert await figure(tab, "Epoch") == "…4821"
        assert "1795810234821" in await tab.evaluate("document.querySelector('dd [title]').title")


async def test_a_server_that_has_gone_is_told_from_one_that_waits(engine: FakeEngine, tmp_path: Path) -> None:
    engine.cluster.replace(sample_cluster())
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('.stage').length === 2")
        engine.cluster.close()
        await tab.wait_for("document.querySelector('#state').innerText === 'offline'")
        (notice,) = await texts(tab, "#notice")
        assert notice.startswith("The server does not answer. What follows is as of ")


async def test_what_peers_say_is_text(engine: FakeEngine, tmp_path: Path) -> None:
    event = ClusterEvent(999.0, "failed", HOSTILE, HOSTILE)
    engine.cluster.replace(
        sample_cluster(
            waiting=HOSTILE, stages=[stage(HOSTILE, 0, 6)], peers=[peer(HOSTILE, None, HOSTILE)], events=[event]
        )
    )
    async with page_of(engine, tmp_path) as tab:
        await tab.wait_for("document.querySelectorAll('#peers tr').length === 1")
        for selector in (".stage > b", ".spare > b", "#peers b", "#notice"):
            assert await texts(tab, selector) == [HOSTILE]
        assert HOSTILE in (await texts(tab, "#events li"))[0]
        assert await tab.evaluate("document.querySelectorAll('main img, header img').length") == 0
        assert await tab.evaluate("window.hacked === undefined")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_stands_out_in_both_color_schemes(engine: FakeEngine, tmp_path: Path, scheme: str) -> None:
    engine.cluster.replace(sample_cluster(waiting="0 of 1"))
    async with page_of(engine, tmp_path) as tab:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await tab.call("Emulation.setEmulatedMedia", features=[feature])
        await tab.wait_for("document.querySelectorAll('.stage').length === 2")
        background = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(_channels(background)) > 382) is (scheme == "light")
        for selector in ("#state", "#notice", "h2", ".stage b", ".stage .faint", "td .good", "#events .warn"):
            color = await tab.evaluate(f"getComputedStyle(document.querySelector({selector!r})).color")
            assert _contrast(color, background) >= 4.5, (selector, color)


async def test_nothing_overflows_a_narrow_window(engine: FakeEngine, tmp_path: Path) -> None:
    reason = "cannot load [0, 3): " + "there is no room for its weights; " * 8
    peers = [peer("p1", 0), peer("p2" * 40, 1), peer("p3", None, reason)]
    engine.cluster.replace(sample_cluster(peers=peers, waiting=reason))
    async with page_of(engine, tmp_path) as tab:
        size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        await tab.call("Emulation.setDeviceMetricsOverride", **size)
        await tab.wait_for("document.querySelectorAll('.stage').length === 2")
        assert await tab.evaluate("document.documentElement.scrollWidth") <= 360


def _channels(color: str) -> list[int]:
    return [int(channel) for channel in color.removeprefix("rgb(").removesuffix(")").split(",")]


def _contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _channels(color))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
