"""Open-loop load on any OpenAI-compatible server: `python -m benchmarks.serving --help`.

Prints the figures of `vllm bench serve` and saves them with a plot.
"""

import argparse
import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.arrivals import arrival_times_s
from benchmarks.dialects import DIALECTS
from benchmarks.load import LoadResult, Target, run_load
from benchmarks.metrics import PERCENTILES, Goals, Summary, summarize
from benchmarks.prompts import Prompt, Workload, as_text, make_prompts
from benchmarks.report import format_summary, save_json, save_plot
from distllm.clients import Client, ClientError

EPILOG = """\
examples:
  python -m benchmarks.serving --num-prompts 16                      16 requests at once
  python -m benchmarks.serving --request-rate 4 --goodput ttft:200 tpot:50
  python -m benchmarks.serving --prefix-len 512 --num-prefixes 4     prompts that share their beginnings
  python -m benchmarks.serving --dialect openai --tokenizer PATH     a server that takes no token ids
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        goals = Goals.parse(options.goodput)
        _check_counts(options)
        files = _files_to_save(options.save)
        prompts = _prompts(options)
        target = _target(options)
        rng = np.random.default_rng([options.seed, 1])
        arrivals_s = arrival_times_s(len(prompts), options.request_rate, options.burstiness, rng)
    except (ValueError, ClientError, OSError) as error:
        parser.error(str(error))
    result = asyncio.run(_warm_up_and_run(target, prompts, arrivals_s, options))
    summary = summarize(result, goals)
    print(format_summary(summary, options.percentiles, options.request_rate))
    if files is not None:
        _save(files, options, summary, result)
    return 0 if summary.num_failed == 0 else 1


async def _warm_up_and_run(
    target: Target, prompts: Sequence[Prompt], arrivals_s: Sequence[float], options: argparse.Namespace
) -> LoadResult:
    """The warm-up sends the first prompts reversed, so that the run finds none of them in a prefix cache."""
    warmups = [
        Prompt(prompt.token_ids[::-1], prompt.output_len, prompt.text and prompt.text[::-1])
        for prompt in prompts[: options.num_warmups]
    ]
    if warmups:
        await run_load(target, warmups, [0.0] * len(warmups))
    return await run_load(target, prompts, arrivals_s, options.max_concurrency)


def _prompts(options: argparse.Namespace) -> list[Prompt]:
    """Raises ValueError for settings that do not fit together."""
    workload = Workload(
        num_prompts=options.num_prompts,
        input_len=options.input_len,
        output_len=options.output_len,
        range_ratio=options.range_ratio,
        prefix_len=options.prefix_len,
        num_prefixes=options.num_prefixes,
    )
    rng = np.random.default_rng([options.seed, 0])
    if options.tokenizer is None:
        if DIALECTS[options.dialect].needs_text:
            raise ValueError(f"--dialect {options.dialect} sends text; give --tokenizer")
        return make_prompts(workload, range(options.vocab_size), rng)
    tokenizer = _tokenizer(options.tokenizer)
    prompts = make_prompts(workload, range(tokenizer.get_vocab_size(with_added_tokens=False)), rng)
    return as_text(prompts, tokenizer.decode)


def _tokenizer(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"--tokenizer: there is no {file}")
    return Tokenizer.from_file(str(file))


def _target(options: argparse.Namespace) -> Target:
    """Raises ClientError where the server does not answer."""
    with Client(options.base_url, model=options.model, api_key=options.api_key) as client:
        return Target(
            base_url=client.base_url,
            model=client.model(),
            dialect=DIALECTS[options.dialect],
            api_key=options.api_key,
            timeout_s=options.timeout_s,
        )


def _check_counts(options: argparse.Namespace) -> None:
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise ValueError("--max-concurrency must be at least 1; leave it out for no limit")
    if options.num_warmups < 0:
        raise ValueError("--num-warmups must be at least 0")


def _files_to_save(base: Path | None) -> tuple[Path, Path] | None:
    """FILE.json and FILE.png, found out to be writable before anything is measured. Raises OSError."""
    if base is None:
        return None
    stem = base.with_suffix("") if base.suffix in (".json", ".png") else base
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    for file in files:
        file.open("ab").close()
    return files


def _save(files: tuple[Path, Path], options: argparse.Namespace, summary: Summary, result: LoadResult) -> None:
    settings = {name: value for name, value in vars(options).items() if name not in ("api_key", "save")}
    file, plot = files
    save_json(file, {name: _plain(value) for name, value in settings.items()}, summary, result)
    save_plot(plot, f"{options.num_prompts} requests at {options.request_rate:g} a second", result)
    print(f"saved {file} and {plot}")


def _plain(value: object) -> object:
    """The value if JSON has it, else its text (infinity, paths)."""
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if is_finite and isinstance(value, int | float | str | list | None) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Load a running OpenAI-compatible server and print what its clients see.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    _add_server_options(parser.add_argument_group("server"))
    _add_load_options(parser.add_argument_group("load"))
    _add_report_options(parser.add_argument_group("report"))
    return parser


def _add_server_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", default="http://127.0.0.1:8000")
    group.add_argument("--model", help="default: the first that the server lists")
    group.add_argument("--api-key")
    group.add_argument("--dialect", choices=DIALECTS, default="vllm", help="what the server takes")
    group.add_argument("--timeout-s", type=float, default=600.0, help="most seconds for one answer")


def _add_load_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num-prompts", type=int, default=100)
    group.add_argument("--request-rate", type=float, default=float("inf"), help="a second; inf: all at once")
    group.add_argument("--burstiness", type=float, default=1.0, help="1 is a Poisson process, less is burstier")
    group.add_argument("--max-concurrency", type=int, help="most requests under way at once")
    group.add_argument("--input-len", type=int, default=128, help="tokens of each prompt's own part")
    group.add_argument("--output-len", type=int, default=64)
    group.add_argument("--range-ratio", type=float, default=0.0, help="lengths vary by this share, in [0, 1)")
    group.add_argument("--prefix-len", type=int, default=0, help="tokens of a beginning that prompts share")
    group.add_argument("--num-prefixes", type=int, default=1)
    group.add_argument("--vocab-size", type=int, default=1000, help="prompts' token ids are below this")
    group.add_argument("--tokenizer", type=Path, help="folder or tokenizer.json; prompts use its vocabulary")
    group.add_argument("--num-warmups", type=int, default=1, help="requests before the run, not counted")
    group.add_argument("--seed", type=int, default=0)


def _add_report_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--goodput", nargs="*", default=[], metavar="NAME:MS", help="as in ttft:200 tpot:50")
    group.add_argument("--percentiles", nargs="*", type=float, choices=PERCENTILES, default=[90.0, 99.0])
    group.add_argument("--save", type=Path, metavar="FILE", help="write FILE.json and FILE.png")


if __name__ == "__main__":
    sys.exit(main())
