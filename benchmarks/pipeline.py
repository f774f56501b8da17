"""What a pipeline of stages gains and costs, on this machine: peers pinned to cores, links between them emulated.

`python -m benchmarks.pipeline` makes a random bf16 checkpoint in the shape of SmolLM2-135M. All that is compared is
measured in this run; figures are the medians of the rounds. Front end and coordinator share the peers' cores.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.checkpoint import SMOLLM2_135M, make_checkpoint
from benchmarks.cluster import Cluster, running_cluster
from benchmarks.hop import measure_hop
from benchmarks.link import CLEAR, Conditions
from benchmarks.pipeline_report import ROUND_TRIP_S, FarLatency, Loss, Report, Throughput
from benchmarks.prompts import Workload, make_prompts
from benchmarks.servers import OURS, running
from benchmarks.synthetic_tokenizer import three_letter_words
from benchmarks.watched_streams import Ask, Load, WatchedStream, run_streams
from distllm.engine.pipeline.placement.plan_record import read_record

_GIGABIT = 125e6  # bytes a second
_MODEL = "model"
_NAMES = ("ann", "bob", "cid")


class Bench:
    """Measures with one checkpoint. Every method starts what it needs and ends it."""

    def __init__(self, model: Path, options: argparse.Namespace) -> None:
        self._model = str(model)
        self._options = options
        self._cores = sorted(os.sched_getaffinity(0))

    def report(self) -> Report:
        hop, latency = measure_hop(), self._latency()
        losses = []
        for name, model in (("the embedded model", ""), (Path(self._model).name, self._model)):
            with self._cluster(num_stages=2, num_peers=3, model=model) as cluster:
                detection_ms = self._detection_ms(cluster)
                losses.append(self._loss(cluster, name))
        throughput = list(self._throughputs())
        return Report(hop=hop, throughput=throughput, latency=latency, losses=losses, detection_ms=detection_ms)

    def _throughputs(self) -> Iterator[Throughput]:
        """One for each length of prompts, which the coordinators are told of."""
        for length in self._options.num_prompt_tokens:
            with (
                self._pinned_cluster(num_stages=1, num_prompt_tokens=length) as one,
                self._pinned_cluster(num_stages=2, num_prompt_tokens=length) as two,
            ):
                yield self._throughput(one, two, length)

    def _throughput(self, one: Cluster, two: Cluster, num_prompt_tokens: int) -> Throughput:
        """The two take turns, so that what else the machine does is neither's alone."""
        options = self._options
        rates: tuple[list[float], list[float]] = ([], [])
        for number in range(options.rounds + 1):
            for cluster, taken in zip((one, two), rates, strict=True):
                asks = self._asks(options.num_streams, options.num_tokens, num_prompt_tokens, number)
                taken.append(_rate(cluster.base_url, asks))
        one_stage, two_stages = (statistics.median(taken[1:]) for taken in rates)  # the first one warms up
        return Throughput(
            num_streams=options.num_streams,
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=options.num_tokens,
            one_stage=one_stage,
            two_stages=two_stages,
        )

    @contextmanager
    def _pinned_cluster(self, num_stages: int, num_prompt_tokens: int) -> Iterator[Cluster]:
        """A core for each stage; all else on the cores that are left, or on the same where there are no others."""
        expected = {
            "streams": self._options.num_streams,
            "prompt_tokens": num_prompt_tokens,
            "output_tokens": self._options.num_tokens,
        }
        coordinator = ", ".join(f"expected_{name}: {number}" for name, number in expected.items())
        with self._cluster(num_stages, num_peers=num_stages, coordinator=coordinator) as cluster:
            for name, core in zip(cluster.stages, self._cores, strict=False):
                _pin(cluster.peers[name].process.pid, {core})
            others = set(self._cores[2:] or self._cores)
            server = psutil.Process(cluster.server.pid)
            for process in (server, *server.children(recursive=True), psutil.Process()):
                _pin(process.pid, others)
            try:
                yield cluster
            finally:
                _pin(os.getpid(), set(self._cores))

    def _latency(self) -> FarLatency:
        asks = self._asks(1, self._options.num_tokens)
        extra = ["--num-threads", "1", "--served-model-name", _MODEL]
        with (
            tempfile.TemporaryDirectory() as directory,
            running(OURS, self._model, Path(directory) / "serve.log", extra) as plain,
        ):
            alone_ms = self._token_ms(plain.base_url, asks)
        far = Conditions(delay_s=ROUND_TRIP_S / 2, rate=_GIGABIT)
        with self._cluster(num_stages=2, num_peers=2, is_behind_links=True) as cluster:
            figures_ms = []
            for conditions in (CLEAR, far):
                for peer in cluster.peers.values():
                    for link in (peer.uplink, peer.inbound):
                        assert link is not None
                        link.become(conditions)
                figures_ms.append(self._token_ms(cluster.base_url, asks))
        near_ms, far_ms = figures_ms
        return FarLatency(alone_ms=alone_ms, near_ms=near_ms, far_ms=far_ms)

    def _token_ms(self, base_url: str, asks: Sequence[Ask]) -> float:
        streams = [asyncio.run(run_streams(base_url, asks, _MODEL))[0] for _ in range(self._options.rounds)]
        return 1000 * statistics.median(
            (stream.times_s[-1] - stream.times_s[0]) / (len(stream.times_s) - 1) for stream in streams
        )

    def _loss(self, cluster: Cluster, name: str) -> Loss:
        """Kills the last stage, whose place a warm spare takes."""
        asks = self._asks(self._options.num_loss_streams, self._options.num_loss_tokens)
        cluster.wait_until_serving(num_stages=2, num_spares=1)
        before = asyncio.run(run_streams(cluster.base_url, asks, _MODEL))
        after = asyncio.run(_kill_amid(cluster, asks))
        return Loss(
            model=name,
            num_streams=len(asks),
            replay_s=_replay_s(cluster),
            undisturbed_s=max(stream.stall_s for stream in before),
            killed_s=max(stream.stall_s for stream in after),
            has_failed=[stream.text for stream in before] != [stream.text for stream in after],
        )

    def _detection_ms(self, cluster: Cluster) -> float:
        times_ms = []
        for _ in range(self._options.rounds):
            cluster.wait_until_serving(num_stages=2, num_spares=1)
            times_ms.append(_stop_until_noticed_ms(cluster))
        return statistics.median(times_ms)

    def _asks(self, num_streams: int, num_tokens: int, num_prompt_tokens: int = 8, seed: int = 0) -> list[Ask]:
        """Prompts that share nothing, neither with those of another `seed`."""
        workload = Workload(num_prompts=num_streams, input_len=num_prompt_tokens, output_len=num_tokens)
        prompts = make_prompts(workload, three_letter_words(), np.random.default_rng(seed))
        return [
            Ask(prompt=prompt.token_ids, num_tokens=num_tokens, seed=number, has_logprobs=False)
            for number, prompt in enumerate(prompts)
        ]

    @contextmanager
    def _cluster(
        self,
        num_stages: int,
        num_peers: int,
        is_behind_links: bool = False,
        coordinator: str = "",
        model: str | None = None,
    ) -> Iterator[Cluster]:
        """Peers of one thread each, the last of them warm spares."""
        arguments = ["--served-model-name", _MODEL]
        with (
            tempfile.TemporaryDirectory() as directory,
            running_cluster(
                Path(directory),
                num_stages=num_stages,
                model=self._model if model is None else model,
                arguments=arguments,
                coordinator=coordinator,
            ) as cluster,
        ):
            for name in _NAMES[:num_peers]:
                cluster.start_peer(name, is_behind_links=is_behind_links)
            cluster.wait_until_ready()
            cluster.wait_until_serving(num_stages, num_peers - num_stages)
            yield cluster


def _replay_s(cluster: Cluster) -> float:
    """Of all that was computed again since the start, by whoever serves the last stage now."""
    record = read_record(cluster.state_dir)
    assert record.serving is not None
    stage = record.serving.stages[-1]
    samples = (line.split() for line in httpx.get(f"{cluster.base_url}/metrics", trust_env=False).text.splitlines())
    (num_tokens,) = (float(it[1]) for it in samples if it[0] == "distllm_cluster_rebuilt_tokens_total")
    return num_tokens * stage.num_layers * record.cluster.peer(stage.peer_id).prefill_s


def _pin(pid: int, cores: set[int]) -> None:
    """All threads of a process to some cores."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def _rate(base_url: str, asks: Sequence[Ask]) -> float:
    began_s = time.monotonic()
    asyncio.run(run_streams(base_url, asks, _MODEL))
    return sum(ask.num_tokens for ask in asks) / (time.monotonic() - began_s)


async def _kill_amid(cluster: Cluster, asks: Sequence[Ask]) -> list[WatchedStream]:
    load = Load(cluster.base_url, asks, _MODEL)
    await load.until_part(0.3)
    cluster.peers[cluster.stages[-1]].process.kill()
    return await load.finish()


def _stop_until_noticed_ms(cluster: Cluster) -> float:
    """From SIGSTOP of the last stage until the coordinator has found out. Returns once others serve."""
    victim, num_losses, num_epochs = cluster.peers[cluster.stages[-1]], cluster.num_losses, cluster.num_epochs
    began_s = time.monotonic()
    victim.send_signal(signal.SIGSTOP)
    try:
        cluster.wait_until(lambda: cluster.num_losses > num_losses, "the loss is noticed")
        noticed_s = time.monotonic() - began_s
    finally:
        victim.send_signal(signal.SIGCONT)
    cluster.wait_until(lambda: cluster.num_epochs > num_epochs, "the stages serve again")
    return 1000 * noticed_s


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left
    model = make_checkpoint(options.results / "checkpoints/135m", SMOLLM2_135M)
    report = Bench(model.absolute(), options).report()
    print("\n".join(report.lines()))
    file = options.results / "pipeline.json"
    file.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    print(f"written: {file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each figure (default: %(default)s)")
    parser.add_argument("--num-streams", type=int, default=16, help="for the throughput (default: %(default)s)")
    parser.add_argument("--num-tokens", type=int, default=128, help="a stream (default: %(default)s)")
    parser.add_argument(
        "--num-prompt-tokens",
        type=int,
        nargs="+",
        default=[8, 512],
        help="a stream, for the throughput; several for several figures (default: 8 512)",
    )
    parser.add_argument("--num-loss-streams", type=int, default=40, help="amid a loss (default: %(default)s)")
    parser.add_argument("--num-loss-tokens", type=int, default=512, help="a stream then (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
