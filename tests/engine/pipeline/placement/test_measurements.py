"""What peers say of themselves is refused where it cannot be."""

from collections.abc import Callable
from math import inf, nan

import msgspec
import pytest

from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, Link, ModelSizes, PeerId, RowTimes
from distllm.engine.pipeline.placement.plan import Workload
from tests.engine.pipeline.placement.clusters import cluster, model, peer

A = PeerId("a")


def test_a_cluster_goes_through_json_whole() -> None:
    known = cluster(3, peer("a"), peer("b"))
    assert msgspec.json.decode(msgspec.json.encode(known), type=Cluster) == known


def test_a_peers_numbers_are_checked_as_they_are_decoded() -> None:
    message = msgspec.to_builtins(peer("a")) | {"prefill_s": nan}
    with pytest.raises(msgspec.ValidationError, match="prefill_s must be finite"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(peer("a")))


@pytest.mark.parametrize(
    "build",
    [
        lambda: RowTimes((), ()),
        lambda: RowTimes((1, 2), (0.1,)),
        lambda: RowTimes((2, 1), (0.1, 0.1)),
        lambda: RowTimes((0, 1), (0.1, 0.1)),
        lambda: RowTimes((1,), (0.0,)),
        lambda: RowTimes((1,), (inf,)),
        lambda: RowTimes((1,), (61.0,)),
        lambda: peer("coordinator"),
        lambda: peer(""),
        lambda: peer("a", free_bytes=-1),
        lambda: peer("a", prefill_s=0.0),
        lambda: Link(A, A, 0.1, 1e6),
        lambda: Link(COORDINATOR, A, -0.1, 1e6),
        lambda: Link(COORDINATOR, A, 0.1, 0),
        lambda: Link(COORDINATOR, A, 0.1, inf),
        lambda: ModelSizes((), 1, 1, 1, 1),
        lambda: ModelSizes((-1,), 1, 1, 1, 1),
        lambda: model(1, tied_bytes=51),
        lambda: model(1, activation_bytes=0),
        lambda: cluster(1, peer("a"), peer("a")),
        lambda: Cluster(model(1), (), (Link(COORDINATOR, A, 0.1, 1e6),) * 2),
        lambda: Workload(num_streams=0),
    ],
)
def test_numbers_that_cannot_be_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        build()
