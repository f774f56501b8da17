"""Whoever has a certificate gets exactly the bytes that it asks for, within limits."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.transport.app import Reply
from distllm.engine.pipeline.transport.client import Http2Client
from distllm.engine.pipeline.weights.fetch import cut_pieces
from distllm.engine.pipeline.weights.messages import (
    MANIFEST_PATH,
    WEIGHTS_PATH,
    ManifestRequest,
    Span,
    WeightsRequest,
)
from distllm.engine.pipeline.weights.source import Holding, WeightSource
from tests.engine.pipeline.weights.machines import (
    MAX_BYTES,
    Cluster,
    fingerprint,
    hold,
    make_tensors,
    write_checkpoint,
)

TENSORS = make_tensors(a=3_000, b=0, c=2 * MAX_BYTES)
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Holding:
    path = tmp_path_factory.mktemp("source")
    return hold(write_checkpoint(path / "model", TENSORS), path / "hashes")


def source_of(holding: Holding) -> WeightSource:
    return WeightSource({fingerprint(holding): holding}.get, MAX_BYTES)


async def test_bytes_are_those_of_the_tensors(cluster: Cluster, holding: Holding) -> None:
    spans = [Span("a", 0, 3_000), Span("c", MAX_BYTES - 7, 10_000), Span("a", 2_999, 1)]
    async with (
        cluster.serving(source_of(holding).posts) as address,
        cluster.remote(address, fingerprint(holding)) as remote,
    ):
        assert await remote.manifest() == holding.manifest
        content = await remote.read(spans)
    wanted = [TENSORS[span.name].numpy()[span.offset : span.offset + span.num_bytes].tobytes() for span in spans]
    assert content == b"".join(wanted)


async def test_a_stranger_gets_neither_weights_nor_manifest(
    cluster: Cluster, authority: ClusterAuthority, holding: Holding
) -> None:
    request = WeightsRequest(fingerprint=fingerprint(holding), spans=[Span("a", 0, 1)])
    async with cluster.serving(source_of(holding).posts) as address:
        client = Http2Client(address, address.host, None, authority.certificate_pem)
        for path in (MANIFEST_PATH, WEIGHTS_PATH):
            status, _ = await client.post(path, msgspec.msgpack.encode(request), TIMEOUT_S)
            assert status == 403
        await client.close()


async def ask(holding: Holding, request: object, path: str = WEIGHTS_PATH) -> Reply:
    return await source_of(holding).posts[path](None, msgspec.msgpack.encode(request))


@pytest.mark.parametrize(
    ("spans", "status", "reason"),
    [
        ([Span("d", 0, 1)], 404, "no tensor d"),
        ([Span("a", 0, 1), Span("a", 2_990, 11)], 416, "has 3000 bytes, 11 from 2990"),
        ([Span("b", 0, 1)], 416, "has 0 bytes"),
        ([Span("c", 0, MAX_BYTES), Span("a", 0, 1)], 413, "at most 1048576"),
        ([Span("a", -1, 1)], 400, "malformed"),
        ([Span("a", 0, -1)], 400, "malformed"),
        ([Span("a", 0, 2**63), Span("a", 0, 2**63)], 413, "at most 1048576"),
    ],
)
async def test_what_is_not_there_is_refused(holding: Holding, spans: list[Span], status: int, reason: str) -> None:
    reply = await ask(holding, WeightsRequest(fingerprint=fingerprint(holding), spans=spans))
    assert (reply.status, reason in reply.body.decode()) == (status, True)


async def test_another_model_is_refused(holding: Holding) -> None:
    for request, path in (
        (WeightsRequest(fingerprint="0" * 64, spans=[Span("a", 0, 1)]), WEIGHTS_PATH),
        (ManifestRequest(fingerprint="0" * 64), MANIFEST_PATH),
    ):
        reply = await ask(holding, request, path)
        assert (reply.status, b"no model with the fingerprint 000000000000" in reply.body) == (404, True)


@pytest.mark.parametrize("request_", [None, {}, [1], {"fingerprint": 3}, {"fingerprint": "", "spans": [["a", 0]]}])
async def test_nonsense_is_refused(holding: Holding, request_: object) -> None:
    assert (await ask(holding, request_)).status == 400
    if request_ != {"fingerprint": "", "spans": [["a", 0]]}:
        assert (await ask(holding, request_, MANIFEST_PATH)).status == 400


async def test_a_file_that_was_cut_short_is_told(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", TENSORS)
    holding = hold(path, tmp_path / "hashes")
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(5_000)
    reply = await ask(holding, WeightsRequest(fingerprint=fingerprint(holding), spans=[Span("c", MAX_BYTES, 9)]))
    assert (reply.status, b"cut short since" in reply.body) == (500, True)


@given(
    names=st.sets(st.sampled_from(["a", "b", "c"])),
    max_bytes=st.integers(1_000, MAX_BYTES),
)
def test_pieces_are_all_bytes_once_and_in_order(holding: Holding, names: set[str], max_bytes: int) -> None:
    places = [holding.places[name] for name in names]
    pieces = cut_pieces(places, max_bytes)
    covered: dict[str, int] = dict.fromkeys(names, 0)
    for piece in pieces:
        assert 0 < piece.num_bytes <= max_bytes
        position = piece.begin
        for span in piece.spans:
            assert span.offset == covered[span.name]
            assert position == holding.places[span.name].begin + span.offset
            covered[span.name] += span.num_bytes
            position += span.num_bytes
        assert position == piece.end
    assert covered == {name: TENSORS[name].nbytes for name in names}
    num_bytes = sum(covered.values())
    assert len(pieces) <= num_bytes // max_bytes + 2
