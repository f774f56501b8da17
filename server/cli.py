"""The `distllm` command: reads flags, calls one function a subcommand. Every setting has a flag of its name."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from distllm import __version__
from distllm.clients import Client, InvalidCallError
from distllm.server.config import InvalidSettings, Section, Settings, fields, is_repeatable, load_settings, sections

DEFAULT_URL = "http://127.0.0.1:8000"

_DESCRIPTION = """\
The OpenAI-compatible inference server for whatever hardware you have.

  distllm serve                      serve the embedded model at http://127.0.0.1:8000
  distllm serve ./my-checkpoint      serve a Hugging Face checkpoint from a directory
  distllm serve org/name             the same from the hub
  distllm plan ./my-checkpoint       what fits in memory, before loading anything
  distllm quantize org/name ./out    write a checkpoint with INT8 or INT4 weights
  distllm convert org/name ./out     write one file a rank, which starts without slicing
  distllm eval a --against b         perplexity, and how far two models' predictions are apart
  distllm chat                       talk to a running server in the terminal
  distllm complete "Once upon"       stream one completion from a running server
"""

_SERVE_EPILOG = """\
Each flag may also be set as an environment variable (--max-num-seqs: DISTLLM_MAX_NUM_SEQS) or in a YAML file
given by --config or DISTLLM_CONFIG (scheduler: {max_num_seqs: 8}). Flags win over variables, they over the file.

A hub name is fetched once and kept: HF_HOME says where, HF_TOKEN lets private and gated models in, and
HF_HUB_OFFLINE=1 forbids fetching.
"""

_PLAN_EPILOG = """\
examples:
  distllm plan ./my-checkpoint                       the usual context lengths, in the memory that is free now
  distllm plan org/name --context 4096               how many requests of 4,096 tokens run at once
  distllm plan ./my-checkpoint --kv-cache-memory 8   with 8 GiB of KV cache
  distllm plan ./my-checkpoint --kernels             what runs each module, and why nothing faster

Exit status: 0 if the architecture can be served and fits, 1 if not. Weights and tokenizer are checked by serve.
"""

_QUANTIZE_EPILOG = """\
examples:
  distllm quantize ./my-checkpoint ./smaller --quantization int4
  distllm quantize org/name ./smaller --quantization int8 --dynamic-activations

The output is in compressed-tensors' format, which other servers read as well. Embeddings and output head stay as
they are.
"""

_CONVERT_EPILOG = """\
examples:
  distllm convert ./my-checkpoint ./two --tensor-parallel-size 2    one file for each of two ranks
  distllm serve ./two                                               starts two ranks, each with its file
  distllm convert ./two ./back --tensor-parallel-size 1             the Hugging Face checkpoint again, bit for bit
  distllm convert --verify ./two                                    compare every file with its SHA-256

IN is a directory with .safetensors, .bin or .pt weights, one such file beside its config.json, or a hub name. OUT
must not exist, or be empty; it appears when all of it is written.
"""

_EVAL_EPILOG = """\
examples:
  distllm eval ./my-checkpoint --quantization int4 --against ./my-checkpoint
  distllm eval ./quantized --against ./my-checkpoint --text novel.txt --window 1024

Settings are those of the first model; the other is taken as it is stored. Without --text, stories that the embedded
model never saw are read. Both models must share one vocabulary, and are in memory at once.
"""

_CHAT_EPILOG = """\
examples:
  distllm chat                                      talk to the server at http://127.0.0.1:8000
  distllm chat --system "Answer in one word."       with a system message
  echo "What is 3 plus 4?" | distllm chat           one turn a line; only the answers are printed

keys: Enter sends, \"\"\" begins and ends a message of several lines, Ctrl-C stops an answer, Ctrl-D leaves.
In the conversation, /help lists the commands. DISTLLM_API_KEY holds the key where --api-key is not given.
"""

_COMPLETE_EPILOG = """\
examples:
  distllm complete "Once upon a time" --max-tokens 64
  distllm complete < prompt.txt > answer.txt        the whole input is the prompt
  distllm complete "2 + 2 =" --temperature 0 --url http://127.0.0.1:9000

Ctrl-C stops it. DISTLLM_API_KEY holds the key where --api-key is not given.
"""

_PLAN_SECTIONS = ("model", "scheduler", "engine")
_BROKEN_PIPE_STATUS = 141  # as a shell reports a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0 done, 1 failed, 2 called wrongly."""
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
    except (InvalidSettings, InvalidCallError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()
        return _BROKEN_PIPE_STATUS
    except OSError as error:
        _discard_output()
        return _complain(str(error), 1)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distllm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"distllm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_serve(commands)
    _add_plan(commands)
    _add_quantize(commands)
    _add_convert(commands)
    _add_eval(commands)
    _add_chat(commands)
    _add_complete(commands)
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model over OpenAI's HTTP API.",
        epilog=_SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(serve, sections())
    serve.set_defaults(run=_serve)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="say what a checkpoint needs before loading it",
        description="Say how much memory a checkpoint takes and how many requests fit beside it.",
        epilog=_PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(plan, {name: sections()[name] for name in _PLAN_SECTIONS})
    plan.add_argument(
        "--context", type=int, metavar="TOKENS", help="count the requests that fit at this many tokens each"
    )
    plan.add_argument("--kernels", action="store_true", help="print what runs each module, and why nothing faster")
    plan.set_defaults(run=_plan)


def _add_quantize(commands: Any) -> None:
    quantize = commands.add_parser(
        "quantize",
        help="write a quantized checkpoint",
        description="Quantize a checkpoint once, tensor by tensor, into another that `distllm serve` starts from.",
        epilog=_QUANTIZE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(quantize, {"model": sections()["model"]})
    quantize.add_argument("out", type=Path, metavar="OUT", help="directory to write, which must not exist")
    quantize.set_defaults(run=_quantize)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint for several ranks",
        description="Write one safetensors file a rank with DeepSpeed's descriptor, or a single checkpoint again.",
        epilog=_CONVERT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("source", metavar="IN", help="checkpoint directory, file of weights, or hub name")
    convert.add_argument("out", nargs="?", type=Path, metavar="OUT", help="directory to write")
    convert.add_argument(
        "--tensor-parallel-size", type=int, metavar="N", help="ranks to write for; 1: one checkpoint"
    )
    convert.add_argument("--verify", action="store_true", help="write nothing: compare IN with its manifest")
    convert.set_defaults(run=_convert)


def _add_eval(commands: Any) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="measure perplexity, and the distance from another model",
        description="Print perplexity, and Kullback-Leibler divergence and top-1 agreement with another model.",
        epilog=_EVAL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(evaluation, {name: sections()[name] for name in ("model", "engine")})
    evaluation.add_argument("--against", metavar="PATH_OR_HUB_ID", help="the model to compare with")
    evaluation.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to predict; none: stories")
    evaluation.add_argument("--window", type=int, default=512, help="tokens seen at once (default: %(default)s)")
    evaluation.set_defaults(run=_eval)


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser(
        "chat",
        help="chat with a running server",
        description="Chat in the terminal; answers stream as they are generated.",
        epilog=_CHAT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_client_flags(chat)
    chat.add_argument("--system", help="system message to begin with")
    chat.set_defaults(run=_chat)


def _add_complete(commands: Any) -> None:
    complete = commands.add_parser(
        "complete",
        help="stream one completion",
        description="Stream the completion of a prompt.",
        epilog=_COMPLETE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complete.add_argument("prompt", nargs="?", help="text to continue; none: standard input")
    _add_client_flags(complete)
    complete.set_defaults(run=_complete)


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help="bearer token, if it wants one")
    parser.add_argument("--model", metavar="NAME", help="model name; none: the first that the server lists")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer; none: the server's")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; none: the model's default")


def _add_settings(parser: argparse.ArgumentParser, shown: dict[str, type[Section]]) -> None:
    parser.add_argument("--config", type=Path, help="YAML file with settings by section")
    for section, model in shown.items():
        group = parser.add_argument_group(section, model.__doc__)
        for name, field in model.model_fields.items():
            _add_setting(group, name, field)


def _add_setting(group: Any, name: str, field: FieldInfo) -> None:
    """One flag. Nothing is set where it is not given, so that the environment and the file can speak."""
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
    if name == "model":
        group.add_argument(name, nargs="?", metavar="PATH_OR_HUB_ID", **options)
        return
    if field.annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif is_repeatable(field):
        options |= {"action": "append", "metavar": "KEY" if name == "api_key" else "NAME"}
    elif isinstance(field.default, str):
        options["choices"] = get_args(field.annotation) or None
    group.add_argument("--" + name.replace("_", "-"), **options)


def _help(field: FieldInfo) -> str:
    has_default = field.default is not None and not is_repeatable(field)
    return f"{field.description}" + (f" (default: {field.default})" if has_default else "")


def _settings(arguments: argparse.Namespace, used: Sequence[str] = ()) -> Settings:
    flags = {name: value for name, value in vars(arguments).items() if name in fields()}
    config = arguments.config or (os.environ.get("DISTLLM_CONFIG") and Path(os.environ["DISTLLM_CONFIG"]))
    return load_settings(flags, config or None, used=used)


def _serve(arguments: argparse.Namespace) -> int:
    from distllm.server.launch import serve

    return serve(_settings(arguments))


def _plan(arguments: argparse.Namespace) -> int:
    from distllm.server.memory_report import print_plan

    return print_plan(_settings(arguments, _PLAN_SECTIONS), arguments.context, arguments.kernels)


def _quantize(arguments: argparse.Namespace) -> int:
    from distllm.server.quantizing import quantize

    return quantize(_settings(arguments, ("model",)), arguments.out)


def _convert(arguments: argparse.Namespace) -> int:
    from distllm.server.conversion import convert, verify_converted

    if arguments.verify:
        return verify_converted(Path(arguments.source))
    return convert(arguments.source, arguments.out, arguments.tensor_parallel_size)


def _eval(arguments: argparse.Namespace) -> int:
    from distllm.server.evaluation import print_evaluation

    settings = _settings(arguments, ("model", "engine"))
    return print_evaluation(settings, arguments.against, arguments.text, arguments.window)


def _chat(arguments: argparse.Namespace) -> int:
    from distllm.clients.chat import run_chat

    with _client(arguments) as client:
        return run_chat(client, system=arguments.system, options=_given(arguments))


def _complete(arguments: argparse.Namespace) -> int:
    from distllm.clients.complete import run_complete

    with _client(arguments) as client:
        return run_complete(client, arguments.prompt, options=_given(arguments))


def _client(arguments: argparse.Namespace) -> Client:
    """The server may know several keys, separated by commas: any of them will do."""
    key = arguments.api_key or os.environ.get("DISTLLM_API_KEY", "").partition(",")[0]
    return Client(arguments.url, model=arguments.model, api_key=key or None)


def _given(arguments: argparse.Namespace) -> Any:
    """The sampling options that were asked for; the rest is the server's to choose."""
    options = {name: getattr(arguments, name) for name in ("max_tokens", "temperature")}
    return {name: value for name, value in options.items() if value is not None}


def _discard_output() -> None:
    """Where stdout cannot be written, nor can what is buffered: let the interpreter's last flush find no fault."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _complain(message: str, status: int) -> int:
    print(f"distllm: {message}", file=sys.stderr)  # noqa: T201
    return status
