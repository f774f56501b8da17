"""One front end over an engine here and a pipeline over real peers: routes, spilling, and losses of either."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import psutil
import pytest

from benchmarks.cluster import ONE_NUMERICS, Cluster, running_cluster
from benchmarks.watched_streams import UNHARMED, Load, WatchedStream, damage_of, run_streams
from tests.cluster.conftest import MODEL, PlainStreams, asks
from tests.conftest import is_soon

PEERS = ("eve", "fay")
NUM_STREAMS = 12
NUM_TOKENS = 160
HYBRID = ("--mode", "hybrid", "--max-num-seqs", "4", "--target-ttft-s", "0.2", "--patience-s", "1")


@dataclass(frozen=True, slots=True)
class Hybrid:
    """`expected` are the streams of a plain server."""

    cluster: Cluster
    expected: list[WatchedStream]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.cluster.base_url + path, timeout=30)

    def post(self, path: str) -> httpx.Response:
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 4}
        return httpx.post(self.cluster.base_url + path, json=body, timeout=60)

    def routes(self) -> dict[str, str | None]:
        """Why each of them is away; None of one that is there."""
        return {route["route"]: route.get("unavailable") for route in self.get("/health").json()["routes"]}

    def num_requests(self, route: str) -> float:
        """That have taken it, as metrics say."""
        lines = self.get("/metrics").text.splitlines()
        of_route = [line for line in lines if line.startswith(f'distllm_route_requests_total{{route="{route}"')]
        return sum(float(line.rsplit(" ", 1)[1]) for line in of_route)

    @property
    def local_engine(self) -> psutil.Process:
        """The engine that no peer connects to."""
        children = psutil.Process(self.cluster.server.pid).children(recursive=True)
        engines = [child for child in children if "distllm.scheduler.process" in child.cmdline()]
        (local,) = [engine for engine in engines if not _listens(engine, self.cluster.port)]
        return local

    def have_peers(self) -> None:
        """Two stages that run, or the same two anew."""
        for name in PEERS:
            if name not in self.cluster.peers or not self.cluster.peers[name].is_running:
                self.cluster.start_peer(name)
        assert is_soon(lambda: self.routes()["pipeline"] is None, timeout_s=120), self.cluster.log_tails()


def _listens(process: psutil.Process, port: int) -> bool:
    listening = [connection for connection in process.net_connections() if connection.status == psutil.CONN_LISTEN]
    return any(connection.laddr.port == port for connection in listening)


@pytest.fixture(scope="module")
def hybrid(plain_streams: PlainStreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hybrid]:
    """Ready without any peer."""
    expected = plain_streams(NUM_STREAMS, NUM_TOKENS)
    arguments = (*ONE_NUMERICS, *HYBRID, "--kv-cache-memory", "0.1")
    with running_cluster(tmp_path_factory.mktemp("hybrid"), num_stages=2, arguments=arguments) as cluster:
        cluster.wait_until_ready()
        yield Hybrid(cluster, expected)


def test_the_server_is_ready_without_peers_and_says_what_is_missing(hybrid: Hybrid) -> None:
    assert hybrid.get("/health/ready").status_code == 200
    assert hybrid.routes()["local"] is None
    assert is_soon(lambda: "0 of 2 needed peers" in (hybrid.routes()["pipeline"] or ""))


def test_both_routes_give_the_same_text_and_say_which_they_are(hybrid: Hybrid) -> None:
    hybrid.have_peers()
    client = openai.OpenAI(base_url=f"{hybrid.cluster.base_url}/v1", api_key="none")
    answers = {}
    for route in ("local", "pipeline"):
        raw = client.completions.with_raw_response.create(
            model=MODEL, prompt="Once upon a time", max_tokens=48, temperature=0, extra_headers={"x-route": route}
        )
        assert raw.headers["x-route"] == route
        completion = raw.parse()
        answers[route] = (completion.choices[0].text, completion.system_fingerprint)
    assert answers["local"] == answers["pipeline"]
    chosen = client.completions.with_raw_response.create(model=MODEL, prompt="Once", max_tokens=4)
    assert chosen.headers["x-route"] == "local"
    assert "pipeline: TTFT" in chosen.headers["x-route-reason"]
    plan = hybrid.post("/v1/route/explain").json()
    assert [route["is_measured"] for route in plan["routes"]] == [True, True]
    assert plan["routes"][0]["numerics"] == plan["routes"][1]["numerics"]


async def test_under_load_requests_spill_over_and_their_tokens_are_the_same(hybrid: Hybrid) -> None:
    hybrid.have_peers()
    before = {route: hybrid.num_requests(route) for route in ("local", "pipeline")}
    found = await run_streams(hybrid.cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    assert damage_of(hybrid.expected, found) == UNHARMED
    for route, count in before.items():
        assert hybrid.num_requests(route) > count, f"nothing took {route}"


async def test_a_local_engine_that_is_killed_goes_on_where_it_was(hybrid: Hybrid) -> None:
    load = Load(hybrid.cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    await load.until_part(0.3)
    hybrid.local_engine.send_signal(signal.SIGKILL)
    assert damage_of(hybrid.expected, await load.finish()) == UNHARMED
    assert is_soon(lambda: hybrid.routes()["local"] is None, timeout_s=60)


async def test_without_any_peer_left_streams_go_on_here(hybrid: Hybrid) -> None:
    hybrid.have_peers()
    before = hybrid.num_requests("pipeline")
    load = Load(hybrid.cluster.base_url, asks(NUM_STREAMS, NUM_TOKENS), MODEL)
    await load.until_part(0.3)
    assert hybrid.num_requests("pipeline") > before
    for peer in hybrid.cluster.peers.values():
        peer.end()
    assert damage_of(hybrid.expected, await load.finish()) == UNHARMED
    assert is_soon(lambda: "needed peers" in (hybrid.routes()["pipeline"] or ""))
    assert hybrid.get("/health/ready").status_code == 200
    answer = hybrid.post("/v1/completions")
    assert answer.headers["x-route"] == "local"
    assert "pipeline: 0 of" in answer.headers["x-route-reason"]
