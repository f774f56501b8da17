"""What is in the cache is what the manifest says, whoever sent it and whatever went wrong on the way."""

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from safetensors.torch import load_file
from torch import Tensor

from distllm.engine.checkpoint import CheckpointError, open_checkpoint
from distllm.engine.pipeline.patience import Patience
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.weights.fetch import WeightFetch
from distllm.engine.pipeline.weights.messages import WEIGHTS_PATH, Span, WeightsRequest
from distllm.engine.pipeline.weights.remotes import Remotes
from distllm.engine.pipeline.weights.source import Holding
from distllm.engine.pipeline.weights.weight_cache import WeightCache
from tests.conftest import is_soon
from tests.engine.pipeline.weights import fetching_process
from tests.engine.pipeline.weights.machines import (
    Change,
    Cluster,
    WatchedSource,
    fingerprint,
    hold,
    make_tensors,
    manifest_of,
    write_checkpoint,
)

TENSORS = make_tensors(a=30_000, b=0, c=2_500_000, d=40_000, e=1, f=900_000)
ROOT = Path(__file__).parents[4]
SHARD_BYTES = 100_000
"""So that a and d share a file, and c and f have their own."""


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Holding:
    path = tmp_path_factory.mktemp("fetch")
    return hold(write_checkpoint(path / "model", TENSORS), path / "hashes")


@pytest.fixture
def cache(tmp_path: Path, holding: Holding) -> WeightCache:
    cache = WeightCache(tmp_path / "cache")
    cache.keep_manifest(fingerprint(holding), holding.manifest)
    return cache


@contextlib.asynccontextmanager
async def remotes_of(
    cluster: Cluster, holding: Holding, coordinator: WatchedSource, *peers: WatchedSource
) -> AsyncIterator[Remotes]:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        address = await enter(cluster.serving(coordinator.posts))
        first = await enter(cluster.remote(address, fingerprint(holding)))
        others = []
        for number, peer in enumerate(peers):
            address = await enter(cluster.serving(peer.posts, f"holder-{number}"))
            others.append(await enter(cluster.remote(address, fingerprint(holding))))
        yield Remotes(first, others)


async def fetch(
    remotes: Remotes, cache: WeightCache, holding: Holding, names: Sequence[str], told: list[int] | None = None
) -> None:
    """Those of `names` that are not in the cache."""
    known = cache.places(fingerprint(holding))
    tensors = {name: manifest_of(holding).tensors[name] for name in names if name not in known}
    heard = [] if told is None else told
    await WeightFetch(remotes, cache, fingerprint(holding), heard.append, SHARD_BYTES).fetch(tensors)


def fetched(cache: WeightCache, holding: Holding) -> Mapping[str, Tensor]:
    """What loads of the cache."""
    cache.write_index(fingerprint(holding))
    checkpoint = open_checkpoint(cache.path(fingerprint(holding)))
    return {name: tensor for shard in checkpoint.shards for name, tensor in load_file(shard).items()}


def unfinished(cache: WeightCache, holding: Holding) -> list[str]:
    return [path.name for path in cache.path(fingerprint(holding)).iterdir() if path.name.startswith(".")]


def check(cache: WeightCache, holding: Holding, names: Sequence[str]) -> None:
    """The cache has these tensors, bit for bit, and no others."""
    tensors = fetched(cache, holding)
    assert sorted(tensors) == sorted(names)
    assert all(tensors[name].equal(TENSORS[name]) for name in names)
    assert unfinished(cache, holding) == []


async def test_only_what_is_wanted_is_fetched(cluster: Cluster, cache: WeightCache, holding: Holding) -> None:
    source, told = WatchedSource(holding), list[int]()
    async with remotes_of(cluster, holding, source) as remotes:
        await fetch(remotes, cache, holding, ["a", "b", "c", "d"], told)
        check(cache, holding, ["a", "b", "c", "d"])
        assert source.asked == {name: TENSORS[name].nbytes for name in ("a", "c", "d")}
        assert sum(told) == source.asked.total()
        await fetch(remotes, cache, holding, ["c", "d", "e"])
    assert source.asked == {name: TENSORS[name].nbytes for name in ("a", "c", "d", "e")}
    check(cache, holding, ["a", "b", "c", "d", "e"])


class Damage:
    """Flips a bit of a tensor's last byte, `num_times`."""

    def __init__(self, name: str, num_times: int) -> None:
        self._name = name
        self._num_left = num_times

    def __call__(self, spans: list[Span], content: bytes) -> bytes:
        end = 0
        for span in spans:
            end += span.num_bytes
            is_last = span.name == self._name and span.offset + span.num_bytes == TENSORS[self._name].nbytes
            if is_last and self._num_left > 0:
                self._num_left -= 1
                return content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:]
        return content


@pytest.mark.parametrize("num_times", [1, 2])
async def test_a_tensor_that_arrives_damaged_is_fetched_again(
    cluster: Cluster, cache: WeightCache, holding: Holding, num_times: int
) -> None:
    source, told = WatchedSource(holding, Damage("d", num_times)), list[int]()
    async with remotes_of(cluster, holding, source) as remotes:
        await fetch(remotes, cache, holding, ["a", "d"], told)
    assert source.asked == {"a": 30_000, "d": (num_times + 1) * 40_000}
    assert sum(told) == 70_000
    check(cache, holding, ["a", "d"])


async def test_a_tensor_that_stays_damaged_is_refused(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    source = WatchedSource(holding, Damage("d", 100))
    async with remotes_of(cluster, holding, source) as remotes:
        with pytest.raises(CheckpointError, match=r"^d arrived 3 times with another SHA-256"):
            await fetch(remotes, cache, holding, ["d", "f"])
        assert source.asked["d"] == 3 * 40_000
        assert "d" not in cache.places(fingerprint(holding))
        assert unfinished(cache, holding) == []


@pytest.mark.parametrize("change", [lambda _, content: content[:-1], lambda _, content: content + b"x"])
async def test_an_answer_of_another_length_is_refused(
    cluster: Cluster, cache: WeightCache, holding: Holding, change: Change
) -> None:
    async with remotes_of(cluster, holding, WatchedSource(holding, change)) as remotes:
        with pytest.raises(CheckpointError, match=r"coordinator sent 3999\d|coordinator sent 40001"):
            await fetch(remotes, cache, holding, ["d"])
    assert cache.places(fingerprint(holding)) == {}


async def test_a_tensor_that_nobody_has_is_refused(cluster: Cluster, cache: WeightCache, holding: Holding) -> None:
    poorer = Holding(holding.manifest, {name: holding.places[name] for name in ("a", "b")})
    async with remotes_of(cluster, holding, WatchedSource(poorer)) as remotes:
        with pytest.raises(CheckpointError, match="there is no tensor d here"):
            await fetch(remotes, cache, holding, ["a", "d"])


async def test_peers_take_turns_with_the_coordinator(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    sources = [WatchedSource(holding) for _ in range(3)]
    async with remotes_of(cluster, holding, *sources) as remotes:
        await fetch(remotes, cache, holding, ["a", "c", "d", "f"])
    assert all(source.asked.total() > 0 for source in sources)
    assert sum(source.asked.total() for source in sources) == 3_470_000
    check(cache, holding, ["a", "c", "d", "f"])


async def test_a_peer_that_lies_or_has_nothing_does_no_harm(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    honest = WatchedSource(holding)
    liar = WatchedSource(holding, lambda _, content: bytes(len(content)))
    poor = WatchedSource(Holding(holding.manifest, {}))
    terse = WatchedSource(holding, lambda _, content: content[1:])
    async with remotes_of(cluster, holding, honest, liar, poor, terse) as remotes:
        await fetch(remotes, cache, holding, ["a", "c", "d", "f"])
    assert liar.asked.total() > 0
    check(cache, holding, ["a", "c", "d", "f"])


async def test_peers_that_all_lie_are_asked_once(cluster: Cluster, cache: WeightCache, holding: Holding) -> None:
    honest = WatchedSource(holding)
    liars = [WatchedSource(holding, lambda _, content: bytes(len(content))) for _ in range(3)]
    async with remotes_of(cluster, holding, honest, *liars) as remotes:
        await fetch(remotes, cache, holding, ["d"])
    assert sum(liar.asked.total() for liar in liars) == honest.asked["d"] == 40_000
    check(cache, holding, ["d"])


async def test_a_peer_that_is_gone_does_no_harm(cluster: Cluster, cache: WeightCache, holding: Holding) -> None:
    source = WatchedSource(holding)
    async with cluster.serving(source.posts, "holder") as gone:
        pass
    async with (
        cluster.serving(source.posts) as address,
        cluster.remote(address, fingerprint(holding)) as coordinator,
        cluster.remote(gone, fingerprint(holding)) as peer,
    ):
        await fetch(Remotes(coordinator, [peer]), cache, holding, ["c"])
    check(cache, holding, ["c"])


async def test_a_coordinator_that_is_away_is_waited_for(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    source = WatchedSource(holding)
    async with cluster.serving(source.posts) as address:
        pass
    async with cluster.remote(address, fingerprint(holding)) as coordinator:
        fetching = asyncio.create_task(fetch(Remotes(coordinator), cache, holding, ["c"]))
        await asyncio.sleep(0.3)
        assert not fetching.done()
        async with cluster.serving(source.posts, port=address.port):
            await asyncio.wait_for(fetching, 20)
    check(cache, holding, ["c"])


async def test_a_coordinator_that_stays_away_is_given_up_on(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    async with cluster.serving({}) as address:
        pass
    async with cluster.remote(address, fingerprint(holding), Patience(retry_attempts=1)) as coordinator:
        with pytest.raises(
            CheckpointError, match=r"cannot be reached: .*; given up after 2 attempts: see network\.retry"
        ):
            await fetch(Remotes(coordinator), cache, holding, ["c"])


async def test_a_coordinator_that_answers_nothing_is_given_up_on_in_time(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    async def hang(*_: object) -> Reply:
        await asyncio.sleep(60)
        return Reply()

    impatient = Patience(timeout_s=0.3, retry_attempts=0)
    async with (
        cluster.serving({WEIGHTS_PATH: hang}) as address,
        cluster.remote(address, fingerprint(holding), impatient) as coordinator,
    ):
        with pytest.raises(CheckpointError, match="given up after 1 attempts"):
            await asyncio.wait_for(fetch(Remotes(coordinator), cache, holding, ["c"]), 10)


async def test_a_full_disk_is_told_and_costs_only_what_was_unfinished(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    async with remotes_of(cluster, holding, WatchedSource(holding)) as remotes:
        await fetch(remotes, cache, holding, ["a"])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            with pytest.raises(OSError, match=r"cannot be kept in .*: File too large; make room there"):
                await fetch(remotes, cache, holding, ["c"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        check(cache, holding, ["a"])
        await fetch(remotes, cache, holding, ["c"])
    check(cache, holding, ["a", "c"])


async def test_what_has_no_room_is_not_begun(
    cluster: Cluster, cache: WeightCache, holding: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = WatchedSource(holding)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    async with remotes_of(cluster, holding, source) as remotes:
        with pytest.raises(OSError, match=r"needs 2.38 MiB, and its disk has 1.91 MiB free"):
            await fetch(remotes, cache, holding, ["c"])
    assert source.asked == {}


async def test_a_damaged_file_of_the_cache_is_fetched_again(
    cluster: Cluster, cache: WeightCache, holding: Holding
) -> None:
    async with remotes_of(cluster, holding, WatchedSource(holding)) as remotes:
        await fetch(remotes, cache, holding, ["a", "f"])
        place = cache.places(fingerprint(holding))["f"]
        os.truncate(place.tensor.shard, 1_000)
        assert list(cache.places(fingerprint(holding))) == ["a"]
        await fetch(remotes, cache, holding, ["a", "f"])
    check(cache, holding, ["a", "f"])


async def test_two_processes_fetch_into_one_cache(cluster: Cluster, cache: WeightCache, holding: Holding) -> None:
    names = ["a", "c", "d", "f"]
    async with remotes_of(cluster, holding, WatchedSource(holding)) as remotes:
        await asyncio.gather(*(fetch(remotes, cache, holding, names) for _ in range(3)))
    check(cache, holding, names)


async def test_what_was_verified_before_a_kill_is_not_fetched_again(
    cluster: Cluster, cache: WeightCache, holding: Holding, tmp_path: Path
) -> None:
    source = WatchedSource(holding)
    read = source.posts[WEIGHTS_PATH]

    async def withhold_c(caller: PeerId | None, body: bytes) -> Reply:
        if any(span.name == "c" for span in msgspec.msgpack.decode(body, type=WeightsRequest).spans):
            await asyncio.Event().wait()
        return await read(caller, body)

    cluster.keep_identity("peer-1", tmp_path / "identity")
    async with cluster.serving({WEIGHTS_PATH: withhold_c}) as address:
        arguments = [tmp_path / "identity", address.port, tmp_path / "cache", fingerprint(holding)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", fetching_process.__name__, *map(str, arguments), cwd=ROOT
        )
        has_all_else = await asyncio.to_thread(is_soon, lambda: len(cache.places(fingerprint(holding))) == 5, 60)
        assert has_all_else
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    assert len(unfinished(cache, holding)) == 1
    source = WatchedSource(holding)
    async with remotes_of(cluster, holding, source) as remotes:
        await fetch(remotes, cache, holding, list(TENSORS))
    assert source.asked == {"c": TENSORS["c"].nbytes}
    check(cache, holding, list(TENSORS))
