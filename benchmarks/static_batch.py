"""transformers' own generate on one static batch, in a process of its own: `python -m benchmarks.static_batch`.

Prints one line of JSON: tokens a second over the whole run, and after the first token of each row.
"""

import argparse
import json
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    options = _parser().parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto").eval()
    rng = np.random.default_rng(options.seed)
    shape = (options.batch_size, options.input_len)
    prompts = torch.from_numpy(rng.integers(0, model.config.vocab_size - 1, size=shape))
    _seconds(model, prompts[:, :2], 2)
    first_s = _seconds(model, prompts, 1)
    whole_s = _seconds(model, prompts, options.output_len)
    figures = {"output_throughput": options.batch_size * options.output_len / whole_s}
    if options.output_len > 1:
        num_decoded = options.batch_size * (options.output_len - 1)
        figures["decode_throughput"] = num_decoded / (whole_s - first_s)
    print(json.dumps(figures))


def _seconds(model: torch.nn.Module, prompts: torch.Tensor, output_len: int) -> float:
    """Time to generate `output_len` tokens for every row."""
    start_s = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=output_len,
            max_new_tokens=output_len,
            pad_token_id=0,
        )
    assert output.shape[1] == prompts.shape[1] + output_len
    return time.perf_counter() - start_s


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static_batch", description=__doc__)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
