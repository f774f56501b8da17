"""A cluster's figures for Prometheus, and its readiness."""

import httpx
import pytest

from tests.clusters import peer, sample_cluster
from tests.server.fake_engine import FakeEngine


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    named = (line.rsplit(" ", 1) for line in lines if line.startswith("distllm_cluster_"))
    return {name: float(value) for name, value in named}


async def test_without_a_cluster_there_are_no_metrics_of_one(client: httpx.AsyncClient) -> None:
    assert await samples(client) == {}


async def test_metrics_show_the_cluster_s_figures(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.cluster.replace(sample_cluster())
    expected = {
        "distllm_cluster_serving": 1,
        "distllm_cluster_epoch": 7,
        "distllm_cluster_stages": 2,
        "distllm_cluster_steps_in_flight": 2,
        "distllm_cluster_last_recovery_seconds": 0.25,
        "distllm_cluster_recoveries_total": 1,
        "distllm_cluster_recovery_seconds_total": 0.25,
        "distllm_cluster_rebuilt_tokens_total": 64,
        "distllm_cluster_predicted_ttft_seconds": 0.5,
        "distllm_cluster_predicted_tpot_seconds": 0.025,
        "distllm_cluster_predicted_tokens_per_second": 120,
        'distllm_cluster_stage_predicted_seconds{peer="p2",stage="1"}': 0.01,
        'distllm_cluster_link_delay_seconds{source="p1",target="p2"}': 0.001,
        'distllm_cluster_link_goodput_bytes_per_second{source="p1",target="p2"}': 5e6,
        'distllm_cluster_peers{state="serving"}': 2,
        'distllm_cluster_peers{state="spare"}': 1,
        'distllm_cluster_peers{state="gone"}': 0,
        'distllm_cluster_stage_seconds{peer="p1",stage="0"}': 0.0125,
        'distllm_cluster_stage_layers{peer="p2",stage="1"}': 3,
        'distllm_cluster_stage_ranks{peer="p1",stage="0"}': 2,
        'distllm_cluster_stage_info{numerics="cpu1/w8/tp2",peer="p1",quantization="w8",stage="0"}': 1,
        'distllm_cluster_beat_age_seconds{peer="p3"}': 0.125,
        'distllm_cluster_busy_seconds{peer="p1"}': 0.5,
        'distllm_cluster_free_bytes{peer="p1"}': 2 << 30,
        'distllm_cluster_round_trip_seconds{peer="p2"}': 0.002,
        'distllm_cluster_peer_steps_total{peer="p1"}': 40,
        'distllm_cluster_peer_compute_seconds_total{peer="p1"}': 0.5,
        'distllm_cluster_peer_sent_bytes_total{peer="p1"}': 4096,
        'distllm_cluster_link_seconds{source="p1",target="p2"}': 0.003,
        'distllm_cluster_link_bytes_per_second{source="p1",target="p2"}': 2e6,
        'distllm_cluster_link_relayed{source="p1",target="p2"}': 1,
        'distllm_cluster_link_codec{codec="fp8",source="p1",target="p2"}': 1,
    }
    found = await samples(client)
    assert {name: found.get(name) for name in expected} == expected


async def test_what_is_not_known_yet_has_no_sample(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.cluster.replace(sample_cluster(epoch=None, last_recovery_s=None, links=[], predicted=None))
    found = await samples(client)
    assert "distllm_cluster_epoch" not in found
    assert "distllm_cluster_predicted_tpot_seconds" not in found
    assert 'distllm_cluster_stage_seconds{peer="p2",stage="1"}' not in found
    assert not any(name.startswith("distllm_cluster_link") for name in found)


async def test_a_peer_s_name_cannot_break_the_exposition(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.cluster.replace(sample_cluster(peers=[peer('a"}\n0', 0)]))
    text = (await client.get("/metrics")).text
    assert 'distllm_cluster_beat_age_seconds{peer="a\\"}\\n0"} 0.125' in text


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
async def test_readiness_says_what_a_cluster_waits_for(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    engine.cluster.replace(sample_cluster(waiting="0 of 1 needed peers can serve"))
    response = await client.get(path)
    assert response.status_code == 503
    assert response.json()["status"] == "waiting"
    assert response.json()["error"]["message"] == ("the server is waiting: 0 of 1 needed peers can serve")
    assert (await client.get("/health/live")).status_code == 200
    engine.cluster.replace(sample_cluster())
    assert (await client.get(path)).status_code == 200
