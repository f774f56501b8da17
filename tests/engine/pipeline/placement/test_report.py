"""What people and dashboards read of a plan."""

import json
from itertools import permutations

import msgspec

from distllm.engine.pipeline.placement.measurements import Cluster, EdgeCodec, ModelSizes, PeerId
from distllm.engine.pipeline.placement.plan import Workload
from distllm.engine.pipeline.placement.report import report, report_values
from distllm.engine.pipeline.placement.search import search_plan
from distllm.engine.pipeline.placement.what_if import if_peer_lost
from tests.engine.pipeline.placement.clusters import cluster, full_mesh, model, peer

WORKLOAD = Workload(prompt_tokens=64, output_tokens=16, chunk_tokens=16, num_streams=2)


def two_stages() -> Cluster:
    peers = (peer("gpu", 0.001, free_bytes=1100), peer("laptop", 0.002, free_bytes=900), peer("old", 0.1))
    links = tuple(link for link in full_mesh(peers) if (link.source, link.target) != ("gpu", "laptop"))
    links = tuple(link for link in links if "old" not in (link.source, link.target))
    return Cluster(model(8), peers, links)


def test_the_plan_reads_as_a_chain_with_its_figures() -> None:
    peers = two_stages()
    result = search_plan(peers, WORKLOAD, "latency")
    what_if = if_peer_lost(peers, WORKLOAD, "latency", result, PeerId("laptop"))
    assert report(result, WORKLOAD, "latency", [what_if]) == [
        "2 stages for latency",
        "  coordinator",
        "    | 1.01 ms",
        "  laptop       layers 0-2: 6.00 ms a token, 9.60 ms a chunk, 0.34 KiB of weights, 11 blocks",
        "    | 1.02 ms",
        "  gpu          layers 3-7: 7.00 ms a token, 10.0 ms a chunk, 0.54 KiB of weights, 6 blocks",
        "    | 1.01 ms",
        "  coordinator",
        "  TTFT       53.0 ms for 64 tokens in 4 chunks",
        "  TPOT       16.0 ms for one stream, most of it compute of gpu",
        "  throughput 48.7 tokens/s with 1 stream of 2 in 1 micro-batch",
        "  bound by   memory of gpu",
        "  KV cache   6 blocks of 16 tokens",
        "  left out   old: no way between the coordinator and it is measured",
        "  without laptop: does not fit",
    ]


def test_a_hop_names_its_codec() -> None:
    peers = (peer("gpu", free_bytes=1100), peer("laptop", free_bytes=900))
    codecs = tuple(EdgeCodec(*ends, "fp8", 4, 0.0) for ends in permutations((it.peer_id for it in peers), 2))
    result = search_plan(Cluster(model(8), peers, full_mesh(peers), codecs), WORKLOAD, "latency")
    assert [line for line in report(result, WORKLOAD, "latency") if "|" in line] == [
        "    | 1.01 ms",
        "    | 1.00 ms, in fp8",
        "    | 1.01 ms",
    ]


def test_a_quantized_stage_says_so() -> None:
    smaller = ModelSizes((50,) * 4, 25, 25, hidden_size=8, activation_bytes=16, quantization=("w8",) * 4)
    peers = (msgspec.structs.replace(peer("gpu"), model=smaller),)
    result = search_plan(Cluster(model(4), peers, full_mesh(peers)), WORKLOAD, "latency")
    (line,) = (line for line in report(result, WORKLOAD, "latency") if "layers 0-3" in line)
    assert ", 0.24 KiB of w8 weights, " in line


def test_a_change_is_told_by_its_differences() -> None:
    peers = cluster(4, peer("a", 0.001), peer("b", 0.002))
    result = search_plan(peers, WORKLOAD, "latency")
    what_if = if_peer_lost(peers, WORKLOAD, "latency", result, PeerId("a"))
    line = report(result, WORKLOAD, "latency", [what_if])[-1]
    assert line.startswith("  without a: TTFT +")
    assert ", TPOT +4.00 ms, -" in line
    assert line.endswith(" tokens/s, +0 blocks")


def test_what_is_missing_is_told_by_peer() -> None:
    peers = cluster(8, peer("a", free_bytes=400), peer("b", free_bytes=300))
    lines = report(search_plan(peers, WORKLOAD, "throughput"), WORKLOAD, "throughput")
    assert lines[0] == "does not fit with 5 blocks of KV; more memory on any one of these peers would do:"
    assert lines[1:] == [
        "  a: 0.89 KiB more than the 0.39 KiB free, for layers 0-6",
        "  b: 0.99 KiB more than the 0.29 KiB free, for layers 0-6",
    ]


def test_no_peers_are_no_plan() -> None:
    lines = report(search_plan(Cluster(model(2), (), ()), WORKLOAD, "latency"), WORKLOAD, "latency")
    assert lines == ["no plan: no peer can be used"]


def test_values_go_through_json_whole() -> None:
    peers = two_stages()
    result = search_plan(peers, WORKLOAD, "latency")
    what_if = if_peer_lost(peers, WORKLOAD, "latency", result, PeerId("laptop"))
    values = json.loads(json.dumps(report_values(result, WORKLOAD, "latency", [what_if]), allow_nan=False))
    assert [stage["peer_id"] for stage in values["result"]["plan"]["stages"]] == ["laptop", "gpu"]
    assert values["fits"] is True
    assert values["workload"]["prompt_tokens"] == 64
    assert values["what_if"][0]["fits"] is False
    assert values["what_if"][0]["result"]["shortages"][0]["peer_id"] == "gpu"
