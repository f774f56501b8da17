"""Microseconds that sampling takes of a step, by kind of sampling, vocabulary and rows.

    python benchmarks/sampler.py [--device cpu] [--threads N] [--repeats 15]

Peaked logits look like a trained model's (the best few tokens hold most of the weight), flat ones like those of a
checkpoint of random weights, where top_p keeps most of the vocabulary.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling.sampler import Sampler
from distllm.engine.sampling_params import SamplingParams

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8),
    "top_k 50": SamplingParams(top_k=50),
    "top_k 50, top_p 0.9": SamplingParams(top_k=50, top_p=0.9),
    "top_p 0.9": SamplingParams(top_p=0.9),
    "min_p 0.05": SamplingParams(min_p=0.05),
    "greedy, 5 logprobs": SamplingParams(temperature=0.0, logprobs=5),
}
SPREADS = {"peaked": 4.0, "flat": 1.0}
"""Standard deviation of the logits."""
VOCAB_SIZES = (49_152, 128_256)
NUM_ROWS = (1, 16, 32)


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"microseconds a step, median of {arguments.repeats}; {torch.get_num_threads()} threads")
    print(f"{'':36}" + "".join(f"{rows:>8} rows" for rows in NUM_ROWS))
    for vocab_size in VOCAB_SIZES:
        for shape, spread in SPREADS.items():
            logits = random_logits(max(NUM_ROWS), vocab_size, spread).to(arguments.device)
            for kind, params in KINDS.items():
                times = [time_step(logits[:rows], params, arguments.repeats) for rows in NUM_ROWS]
                print(f"{vocab_size:>7} {shape:7} {kind:20}" + "".join(f"{us:13.0f}" for us in times))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def random_logits(num_rows: int, vocab_size: int, spread: float) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * spread


def time_step(logits: Tensor, params: SamplingParams, repeats: int) -> float:
    """Median microseconds, after two steps that are not counted. `logits` are left as they are."""
    sampler, taken_s = Sampler(), []
    for index in range(repeats + 2):
        fresh = logits.clone()
        specs = [SampleSpec(params, seed, index) for seed in range(len(logits))]
        started_s = time.perf_counter()
        sampler.sample(fresh, specs)  # ends by reading the tokens back, so a device has finished
        taken_s.append(time.perf_counter() - started_s)
    return statistics.median(taken_s[2:]) * 1e6


if __name__ == "__main__":
    main()
