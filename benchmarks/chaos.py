"""Every fault in every phase of a pipeline's work, and what clients lose by it: nothing but time, it should be.

`python -m benchmarks.chaos` starts two stages, two spares and a plain server on this machine. For each fault and
phase it sends streams, brings the fault upon a peer, and compares every token with the plain server's.
"""

import argparse
import asyncio
import json
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.cluster import ONE_NUMERICS, Cluster, ClusterFailed, PeerProcess, free_port, running_cluster
from benchmarks.faults import FAULTS, Fault, Phase
from benchmarks.servers import OURS, running
from benchmarks.watched_streams import UNHARMED, Ask, Damage, Load, damage_of, run_streams

MODEL = "distllm-embedded"
_NUM_STAGES, _NAMES = 2, ("ann", "bob", "cid", "dan")
_MAX_STEP_TOKENS = "256"
_LONG = "She went to the park and saw a big dog. " * 100
_TIMEOUT_S = 240.0
_HEAD = (
    f"{'fault':20}{'phase':12}{'lost':>6}{'repeated':>9}{'altered':>8}{'failed':>7}{'leaked':>7}"
    f"{'stall p50':>11}{'max':>10}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a fault in a phase has cost. `problem` says why it could not be measured, or what went wrong then."""

    fault: str
    phase: str
    damage: Damage = UNHARMED
    blocks_leaked: int = 0
    stall_p50_s: float = 0.0
    stall_max_s: float = 0.0
    problem: str | None = None

    @property
    def is_clean(self) -> bool:
        return self.damage == UNHARMED and not self.blocks_leaked and self.problem is None

    def line(self) -> str:
        if self.problem is not None:
            return f"{self.fault:20}{self.phase:12}  {self.problem.splitlines()[0]}"
        damage = self.damage
        counts = f"{damage.lost:6}{damage.repeated:9}{damage.altered:8}{damage.failed:7}{self.blocks_leaked:7}"
        return f"{self.fault:20}{self.phase:12}{counts}{self.stall_p50_s:9.2f} s{self.stall_max_s:8.2f} s"


class Chaos:
    """Brings faults upon a cluster, one after the other. `plain_url` is the server to compare with."""

    def __init__(self, cluster: Cluster, plain_url: str, num_streams: int) -> None:
        self._cluster = cluster
        self._plain_url = plain_url
        self._num_streams = num_streams
        self._num_runs = 0

    def settle(self) -> None:
        """Have all peers there, two serving and the others warm. Raises ClusterFailed."""
        for name in _NAMES:
            if name not in self._cluster.peers or not self._cluster.peers[name].is_running:
                self._cluster.start_peer(name, is_behind_links=True)
        self._cluster.wait_until_serving(_NUM_STAGES, len(_NAMES) - _NUM_STAGES)

    async def score(self, fault: Fault, phase: Phase) -> Score:
        """Bring a fault upon streams in a phase. Raises ClusterFailed."""
        await asyncio.to_thread(self.settle)
        asks = self._asks(phase)
        load = Load(self._cluster.base_url, asks, MODEL, _TIMEOUT_S if fault.ends_server else 0.0)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                victim = await self._reach(phase, load)
                if fault.ends_server:  # what it has not answered yet is the client's to ask again
                    await load.until(lambda: all(stream.is_begun for stream in load.streams))
                await asyncio.to_thread(self._befall, fault, victim)
                found = await load.finish()
        except TimeoutError:
            return Score(fault=fault.name, phase=phase.value, problem=f"streams hang for {_TIMEOUT_S:.0f} s")
        expected = await run_streams(self._plain_url, asks, MODEL)
        stalls = [stream.stall_s for stream in found]
        return Score(
            fault=fault.name,
            phase=phase.value,
            damage=damage_of(expected, found),
            blocks_leaked=await num_blocks_leaked(self._cluster.base_url),
            stall_p50_s=statistics.median(stalls),
            stall_max_s=max(stalls),
        )

    def _asks(self, phase: Phase) -> list[Ask]:
        """Others every time, so that no prefix is cached. Half are greedy, half sampled with a seed."""
        self._num_runs += 1
        is_long = phase in (Phase.PREFILL, Phase.MID_CHUNK)
        return [
            Ask(
                prompt=f"Story {self._num_runs}, of {number} dogs. {_LONG if is_long else ''}",
                num_tokens=40 if is_long else 300,
                temperature=0.8 if number % 2 else 0.0,
                seed=number,
            )
            for number in range(self._num_streams)
        ]

    async def _reach(self, phase: Phase, load: Load) -> PeerProcess:
        """The victim, once it does what the phase says."""
        cluster = self._cluster
        match phase:
            case Phase.LOAD:
                return await asyncio.to_thread(self._newcomer)
            case Phase.PREFILL:
                await asyncio.sleep(0.1)
            case Phase.MID_CHUNK:
                await load.until(lambda: load.num_tokens > 0)
            case Phase.DECODE:
                await load.until_part(0.3)
            case Phase.RECOVERING:
                await load.until_part(0.3)
                num_losses = cluster.num_losses
                cluster.peers[cluster.stages[0]].process.kill()
                await asyncio.to_thread(self._wait_for, lambda: cluster.num_losses > num_losses)
        return cluster.peers[cluster.stages[-1]]

    def _newcomer(self) -> PeerProcess:
        """A spare that has been started anew and loads."""
        name = self._cluster.spares[0]
        num_loads = self._num_loads(name)
        peer = self._cluster.start_peer(name, is_behind_links=True)
        self._wait_for(lambda: self._num_loads(name) > num_loads)
        return peer

    def _num_loads(self, name: str) -> int:
        return len(re.findall(rf" {name}-\w+: reading the checkpoint", self._cluster.log()))

    def _wait_for(self, claim: Callable[[], bool]) -> None:
        self._cluster.wait_until(claim, "the phase begins", _TIMEOUT_S)

    def _befall(self, fault: Fault, victim: PeerProcess) -> None:
        with fault.befall(self._cluster, victim):
            time.sleep(fault.hold_s)


async def num_blocks_leaked(base_url: str) -> int:
    """Blocks of the pool that are neither free nor cached though no request is there."""
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        figures = (await client.get("/health")).json()["engine"]
    return int(figures["num_blocks"] - figures["num_free_blocks"] - figures["num_cached_blocks"])


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left
    print(_HEAD, flush=True)
    scores = []
    for fault in FAULTS:
        if options.faults is None or fault.name in options.faults:
            scores += _scores(fault, options)
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "chaos.json"
    file.write_text(json.dumps([asdict(score) for score in scores], indent=1), encoding="utf-8")
    num_clean = sum(score.is_clean for score in scores)
    print(f"{num_clean} of {len(scores)} without a token lost, repeated or altered; written: {file}")
    return 0 if num_clean == len(scores) else 1


def _scores(fault: Fault, options: argparse.Namespace) -> list[Score]:
    """Of a fault in all its phases, with a cluster of its own: what it leaves behind harms no other."""
    scores: list[Score] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = ["--max-num-batched-tokens", _MAX_STEP_TOKENS, *ONE_NUMERICS]
        plain = stack.enter_context(running(OURS, "", directory / "plain.log", arguments))
        cluster = stack.enter_context(
            running_cluster(
                directory / "cluster",
                num_stages=_NUM_STAGES,
                arguments=[*arguments, "--port", str(free_port())],  # where it is again when it has been killed
            )
        )
        chaos = Chaos(cluster, plain.base_url, options.num_streams)
        for phase in fault.phases:
            if options.phases is None or phase.value in options.phases:
                scores.append(_score(chaos, fault, phase))
                print(scores[-1].line(), flush=True)
                if scores[-1].problem is not None:
                    print(cluster.log_tails(), file=sys.stderr)
                    break
    return scores


def _score(chaos: Chaos, fault: Fault, phase: Phase) -> Score:
    try:
        return asyncio.run(chaos.score(fault, phase))
    except ClusterFailed as error:
        return Score(fault=fault.name, phase=phase.value, problem=str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--faults", nargs="+", choices=[fault.name for fault in FAULTS], help="default: all")
    parser.add_argument("--phases", nargs="+", choices=[phase.value for phase in Phase], help="default: all")
    parser.add_argument("--num-streams", type=int, default=12, help="at once (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
