"""How long a start takes: from the command to readiness, and from there to the first answer.

`python -m benchmarks.start` makes a random bf16 checkpoint in the shape of Llama 3.2 1B (1.2 billion parameters),
reads its files once so that they are in the page cache, and starts `distllm serve` on it a few times.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import make_checkpoint
from benchmarks.servers import OURS, RunningServer, running
from distllm.clients import Client

LLAMA_1_2B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the command to readiness, seconds that the first answer took then, and bytes in memory."""

    ready_s: float
    first_answer_s: float
    memory_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    model = options.model or make_checkpoint(options.results / "checkpoints/llama-1.2b", LLAMA_1_2B)
    weight_bytes = _read_weights(Path(model))
    starts = []
    for number in range(1, options.rounds + 1):
        with running(OURS, str(model), options.results / "start.log", ["--max-model-len", "2048"]) as server:
            starts.append(_measure(server))
        print(f"start {number}: {_line(starts[-1])}", flush=True)
    print(f"median:  {_line(_median(starts))}")
    print(f"weights: {weight_bytes / 2**30:.2f} GiB in files that were in the page cache")
    file = options.results / "start.json"
    file.write_text(json.dumps([asdict(start) for start in starts], indent=1), encoding="utf-8")
    return 0


def _read_weights(model: Path) -> int:
    """Bring the weights into the page cache; returns their bytes."""
    num_bytes = 0
    for file in model.glob("*.safetensors"):
        with file.open("rb") as stored:
            while piece := stored.read(_CHUNK_BYTES):
                num_bytes += len(piece)
    return num_bytes


def _measure(server: RunningServer) -> Start:
    began_s = time.perf_counter()
    with Client(server.base_url) as client:
        client.complete([1, 2, 3], max_tokens=1)
    return Start(server.start_s, time.perf_counter() - began_s, server.memory_bytes())


def _median(starts: Sequence[Start]) -> Start:
    return Start(
        statistics.median(start.ready_s for start in starts),
        statistics.median(start.first_answer_s for start in starts),
        int(statistics.median(start.memory_bytes for start in starts)),
    )


def _line(start: Start) -> str:
    return (
        f"ready after {start.ready_s:.2f} s, first answer in {start.first_answer_s * 1000:.0f} ms, "
        f"{start.memory_bytes / 2**30:.2f} GiB in memory"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint; none: a random one, made once")
    parser.add_argument("--rounds", type=int, default=3, help="starts (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
