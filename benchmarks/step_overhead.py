"""Where a step's time goes at 32 running sequences: the model, the scheduler, the messages, the detokeniser.

`python -m benchmarks.step_overhead` starts `distllm serve` with a random checkpoint in the shape of SmolLM2-135M
and reads the engine's counters around a load. The detokeniser runs in the front end, so it is timed by itself.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.checkpoint import SMOLLM2_135M, make_checkpoint
from benchmarks.dialects import DIALECTS
from benchmarks.load import Target, run_load
from benchmarks.prompts import Workload, make_prompts
from benchmarks.servers import OURS, running
from benchmarks.synthetic_tokenizer import three_letter_words
from distllm.clients import Client
from distllm.server.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Counters:
    """The engine's counters at one moment, or their growth between two."""

    steps: float
    schedule_seconds: float
    execute_seconds: float
    publish_seconds: float

    @classmethod
    def parse(cls, exposition: str) -> "Counters":
        """From /metrics. Raises KeyError where a counter is missing."""
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(exposition)
            for sample in family.samples
        }
        return cls(**{name: samples[f"distllm_engine_{name}_total"] for name in cls.__slots__})

    def since(self, earlier: "Counters") -> "Counters":
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class StepCost:
    """Milliseconds of a mean step. `scheduler_share` counts scheduler and detokeniser against the whole step."""

    execute_ms: float
    schedule_ms: float
    publish_ms: float
    detokenize_ms: float

    @property
    def scheduler_share(self) -> float:
        step_ms = self.execute_ms + self.schedule_ms + self.publish_ms
        return (self.schedule_ms + self.detokenize_ms) / step_ms


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    model = options.model or make_checkpoint(options.results / "checkpoints/smollm2-135m", SMOLLM2_135M)
    cost = step_cost(_measure(options, model), _detokenize_ms(model, options.num_streams))
    print(f"execute      {cost.execute_ms:8.3f} ms a step")
    print(f"schedule     {cost.schedule_ms:8.3f} ms")
    print(f"publish      {cost.publish_ms:8.3f} ms")
    print(f"detokenize   {cost.detokenize_ms:8.3f} ms, in the front end")
    print(f"scheduler and detokeniser: {cost.scheduler_share:.1%} of a step")
    file = options.results / "step_overhead.json"
    file.write_text(json.dumps({**asdict(cost), "scheduler_share": cost.scheduler_share}), encoding="utf-8")
    return 0


def step_cost(grown: Counters, detokenize_ms: float) -> StepCost:
    """Means over the steps that `grown` counts."""
    return StepCost(
        execute_ms=grown.execute_seconds * 1000 / grown.steps,
        schedule_ms=grown.schedule_seconds * 1000 / grown.steps,
        publish_ms=grown.publish_seconds * 1000 / grown.steps,
        detokenize_ms=detokenize_ms,
    )


def _measure(options: argparse.Namespace, model: Path) -> Counters:
    """Growth of the counters while every stream runs."""
    workload = Workload(num_prompts=options.num_streams, input_len=8, output_len=options.output_len)
    prompts = make_prompts(workload, three_letter_words(), np.random.default_rng(options.seed))
    extra = ["--max-num-seqs", str(options.num_streams)]
    with running(OURS, str(model), options.results / "step_overhead.log", extra) as server:
        with Client(server.base_url) as client:
            target = Target(base_url=server.base_url, model=client.model(), dialect=DIALECTS["vllm"])
        asyncio.run(run_load(target, prompts[:1], [0.0]))
        before = _counters(server.base_url)
        asyncio.run(run_load(target, prompts, [0.0] * len(prompts)))
        return _counters(server.base_url).since(before)


def _counters(base_url: str) -> Counters:
    return Counters.parse(httpx.get(f"{base_url}/metrics", trust_env=False).text)


def _detokenize_ms(model: Path, num_streams: int, num_steps: int = 500) -> float:
    """Median milliseconds to turn one token of every stream into text."""
    tokenizer = Tokenizer.load(model)
    streams = [tokenizer.detokenizer() for _ in range(num_streams)]
    ids = np.random.default_rng(0).choice(three_letter_words(), size=(num_steps, num_streams)).tolist()
    seconds = []
    for step in ids:
        start_s = time.perf_counter()
        for stream, token_id in zip(streams, step, strict=True):
            stream.push(token_id)
        seconds.append(time.perf_counter() - start_s)
    return float(np.median(seconds)) * 1000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint folder; none: SmolLM2-135M's shape, random weights")
    parser.add_argument("--num-streams", type=int, default=32, help="running sequences (default: %(default)s)")
    parser.add_argument("--output-len", type=int, default=128, help="tokens an answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
