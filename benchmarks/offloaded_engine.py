"""Runs an engine that offloads to a disk and prints what batches of some numbers of streams came to.

The part of `benchmarks.offload` that runs under the memory limit, so it imports little.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distllm import LLM, SamplingParams


@dataclass(frozen=True, slots=True)
class Run:
    """What one number of streams came to; a step gives each stream a token."""

    num_streams: int
    tokens_per_s: float
    streamed_bytes_per_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = {"max_model_len": 2048, "max_num_seqs": max(options.streams), "max_num_batched_tokens": 64}
    with LLM(options.model, offload="disk", offload_dir=options.offload_dir, **settings) as llm:
        runs = [_run_batch(llm, streams, options.num_tokens) for streams in options.streams]
    print(json.dumps([asdict(run) for run in runs]))
    return 0


def _run_batch(llm: LLM, num_streams: int, num_tokens: int) -> Run:
    """Prompts so short that one step reads them all."""
    prompts = [[10 + stream, 20, 30, 40] for stream in range(num_streams)]
    began_s = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=num_tokens, temperature=0.0), use_tqdm=False)
    steps_per_s = num_tokens / (time.perf_counter() - began_s)
    return Run(num_streams, num_streams * steps_per_s, steps_per_s * llm.info.streamed_bytes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offloaded_engine", description=__doc__)
    parser.add_argument("model", help="checkpoint")
    parser.add_argument("--streams", type=int, nargs="+", required=True, help="sequences that run at once")
    parser.add_argument("--num-tokens", type=int, required=True, help="of each stream")
    parser.add_argument("--offload-dir", required=True, help="folder on a disk")
    return parser


if __name__ == "__main__":
    sys.exit(main())
