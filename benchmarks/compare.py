"""This server, `transformers serve --continuous-batching` and transformers' generate, under one load, in turn.

`python -m benchmarks.compare` makes a random checkpoint in the shape of SmolLM2-135M, measures every contender once
a round, and writes results/compare.{json,md,png}. One contender runs at a time.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from benchmarks.checkpoint import SMOLLM2_135M, make_checkpoint
from benchmarks.dialects import DIALECTS
from benchmarks.load import LoadResult, Target, run_load
from benchmarks.metrics import Goals, Summary, summarize
from benchmarks.prompts import Prompt, Workload, as_text, make_prompts
from benchmarks.rounds import FIGURES, Round, markdown_table, medians, ratios
from benchmarks.servers import OURS, TRANSFORMERS, Command, RunningServer, ServerFailedError, running
from benchmarks.synthetic_tokenizer import three_letter_words
from distllm.clients import Client

STATIC_BATCH = "transformers generate, static batch"


class LoadFailedError(Exception):
    """Requests failed, so the figures would not be comparable."""


class ContenderFailedError(Exception):
    """A contender could not be measured; the message names it and says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    model = str(options.model or make_checkpoint(options.results / "checkpoints/smollm2-135m", SMOLLM2_135M))
    prompts = _prompts(options, model)
    contenders = _contenders(options, model, prompts)
    results: dict[str, list[Round]] = {}
    failure = None
    try:
        for number in range(1, options.rounds + 1):
            _play(number, contenders, results, partial(_save, options, results))
    except ContenderFailedError as error:
        failure = str(error)
    if results:
        print(f"\n{markdown_table(results)}\n\nsaved {options.results}/compare.json, .md and .png")
    if failure is not None:
        print(f"the comparison ended early: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def _play(
    number: int,
    contenders: dict[str, Callable[[], Round]],
    results: dict[str, list[Round]],
    save: Callable[[], None],
) -> None:
    """Measure every contender once. Each figure is in `results` and saved before the next is measured.

    Raises ContenderFailedError.
    """
    for name, measure in contenders.items():
        try:
            one = measure()
        except (ServerFailedError, LoadFailedError, subprocess.SubprocessError) as error:
            raise ContenderFailedError(f"{name}: {error}") from error
        results.setdefault(name, []).append(one)
        save()
        print(f"round {number}, {name}: {_line(one)}", flush=True)


def _contenders(
    options: argparse.Namespace, model: str, prompts: Sequence[Prompt]
) -> dict[str, Callable[[], Round]]:
    """What is measured, ours first."""
    serve = partial(_measure_server, options, model, prompts)
    contenders: dict[str, Callable[[], Round]] = {
        OURS.name: partial(serve, OURS, "vllm"),
        TRANSFORMERS.name: partial(serve, TRANSFORMERS, "transformers"),
        STATIC_BATCH: partial(_measure_static_batch, options, model),
    }
    return {name: measure for name, measure in contenders.items() if name not in options.skip}


def _measure_server(
    options: argparse.Namespace, model: str, prompts: Sequence[Prompt], command: Command, dialect: str
) -> Round:
    """Start it, send one request, then the load. Raises ServerFailedError and LoadFailedError."""
    warmup, *load = prompts
    log = options.results / f"{command.arguments[0].rpartition('/')[2]}.log"
    with running(command, model, log) as server:
        with Client(server.base_url) as client:
            name = model if command is TRANSFORMERS else client.model()
        target = Target(base_url=server.base_url, model=name, dialect=DIALECTS[dialect])
        first = _run(target, [warmup])
        result = _run(target, load)
        return _round(result, first, server)


def _run(target: Target, prompts: Sequence[Prompt]) -> LoadResult:
    result = asyncio.run(run_load(target, prompts, [0.0] * len(prompts)))
    failures = [answer.failure for answer in result.answers if answer.failure is not None]
    if failures:
        raise LoadFailedError(f"{len(failures)} of {len(prompts)} requests failed; the first: {failures[0]}")
    return result


def _round(result: LoadResult, first: LoadResult, server: RunningServer) -> Round:
    summary = summarize(result, Goals())
    return Round(
        output_throughput=summary.output_throughput,
        decode_throughput=_decode_throughput(summary),
        ttft_ms=summary.ttft.median,
        tpot_ms=summary.tpot.median,
        e2el_ms=summary.e2el.median,
        start_s=server.start_s,
        first_answer_s=first.answers[0].ttft_s,
        memory_mib=server.memory_bytes() / 2**20,
    )


def _decode_throughput(summary: Summary) -> float | None:
    """Tokens a second while every stream decodes: one token of each in a median TPOT."""
    return summary.num_completed * 1000 / summary.tpot.median if summary.tpot.median else None


def _measure_static_batch(options: argparse.Namespace, model: str) -> Round:
    command = [sys.executable, "-m", "benchmarks.static_batch", model, "--seed", str(options.seed)]
    command += ["--batch-size", str(options.num_streams), "--input-len", str(options.input_len)]
    command += ["--output-len", str(options.output_len)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    return Round(**json.loads(run.stdout.splitlines()[-1]))


def _prompts(options: argparse.Namespace, model: str) -> list[Prompt]:
    """One for the first answer, then one a stream; as text, which every server takes."""
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    ids = range(tokenizer.get_vocab_size(with_added_tokens=False)) if options.model else three_letter_words()
    workload = Workload(
        num_prompts=options.num_streams + 1, input_len=options.input_len, output_len=options.output_len
    )
    prompts = make_prompts(workload, ids, np.random.default_rng(options.seed))
    return as_text(prompts, tokenizer.decode)


def _save(options: argparse.Namespace, results: dict[str, list[Round]]) -> None:
    """What has been measured so far; a contender without a figure yet is left out."""
    ours, *others = results
    middle = {name: medians(rounds) for name, rounds in results.items()}
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load": {name: getattr(options, name) for name in ("num_streams", "input_len", "output_len", "rounds")},
        "rounds": {name: [asdict(one) for one in rounds] for name, rounds in results.items()},
        "medians": {name: asdict(one) for name, one in middle.items()},
        "times_better": {name: ratios(middle[ours], middle[name]) for name in others},
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "compare.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (options.results / "compare.md").write_text(markdown_table(results) + "\n", encoding="utf-8")
    _plot(options.results / "compare.png", results)


def _plot(path: Path, results: dict[str, list[Round]]) -> None:
    """Throughput of every contender: the median as a bar, each round as a dot."""
    matplotlib.use("agg")
    figure = Figure(figsize=(9, 1 + len(results)), layout="constrained")
    axes = figure.add_subplot()
    for name, rounds in reversed(results.items()):
        values = [one.output_throughput for one in rounds]
        axes.barh(name, np.median(values), color="tab:blue", alpha=0.6)
        axes.plot(values, [name] * len(values), "k.")
    axes.set(xlabel=FIGURES["output_throughput"][0])
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


def _line(one: Round) -> str:
    present = {name: value for name, value in asdict(one).items() if value is not None}
    return ", ".join(f"{name} {value:.4g}" for name, value in present.items())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint folder; none: SmolLM2-135M's shape, random weights")
    parser.add_argument("--num-streams", type=int, default=16, help="requests sent at once (default: %(default)s)")
    parser.add_argument("--input-len", type=int, default=32, help="tokens a prompt (default: %(default)s)")
    parser.add_argument("--output-len", type=int, default=64, help="tokens an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default: %(default)s)")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave a contender out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
