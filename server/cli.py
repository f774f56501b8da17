"""The `distllm` command: reads flags, calls one function a subcommand. Every setting has a flag of its name."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from distllm import __version__
from distllm.clients import Client
from distllm.clients.options import ChatOptions, CompletionOptions
from distllm.server.config import InvalidSettings, Section, fields, is_repeatable, load_settings, sections

DEFAULT_URL = "http://127.0.0.1:8000"

_DESCRIPTION = """\
The OpenAI-compatible inference server for whatever hardware you have.

  distllm serve                      serve the embedded model at http://127.0.0.1:8000
  distllm serve ./my-checkpoint      serve a Hugging Face checkpoint from a directory
  distllm serve org/name             the same from the hub
  distllm plan ./my-checkpoint       what fits in memory, before loading anything
  distllm chat                       talk to a running server in the terminal
  distllm complete "Once upon"       stream one completion from a running server
"""

_SERVE_EPILOG = """\
Each flag may also be set as an environment variable (--max-num-seqs: DISTLLM_MAX_NUM_SEQS) or in a YAML file
given by --config or DISTLLM_CONFIG (scheduler: {max_num_seqs: 8}). Flags win over variables, they over the file.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0 done, 1 failed, 2 called wrongly."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except InvalidSettings as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distllm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"distllm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_serve(commands)
    _add_plan(commands)
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
    )
    _add_settings(plan, {name: sections()[name] for name in ("model", "scheduler", "engine")})
    plan.add_argument(
        "--context", type=int, metavar="TOKENS", help="count the requests that fit at this many tokens each"
    )
    plan.set_defaults(run=_plan)


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser("chat", help="chat with a running server", description="Chat in the terminal.")
    _add_client_flags(chat)
    chat.add_argument("--system", help="system message to begin with")
    chat.set_defaults(run=_chat)


def _add_complete(commands: Any) -> None:
    complete = commands.add_parser(
        "complete", help="stream one completion", description="Stream the completion of a prompt."
    )
    complete.add_argument("prompt", nargs="?", help="text to continue; none: standard input")
    _add_client_flags(complete)
    complete.set_defaults(run=_complete)


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument(
        "--api-key", default=os.environ.get("DISTLLM_API_KEY"), help="bearer token, if it wants one"
    )
    parser.add_argument("--model", help="model name; none: the first that the server lists")
    parser.add_argument("--max-tokens", type=int, default=512, help="most tokens an answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, help="0 is greedy; none: the model's default")


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
        options |= {"action": "append", "metavar": "NAME"}
    elif isinstance(field.default, str):
        options["choices"] = get_args(field.annotation) or None
    group.add_argument("--" + name.replace("_", "-"), **options)


def _help(field: FieldInfo) -> str:
    has_default = field.default is not None and not is_repeatable(field)
    return f"{field.description}" + (f" (default: {field.default})" if has_default else "")


def _settings(arguments: argparse.Namespace) -> Any:
    flags = {name: value for name, value in vars(arguments).items() if name in fields()}
    config = arguments.config or (os.environ.get("DISTLLM_CONFIG") and Path(os.environ["DISTLLM_CONFIG"]))
    return load_settings(flags, config or None)


def _serve(arguments: argparse.Namespace) -> int:
    from distllm.server.launch import serve

    return serve(_settings(arguments))


def _plan(arguments: argparse.Namespace) -> int:
    from distllm.server.memory_report import print_plan

    return print_plan(_settings(arguments), arguments.context)


def _chat(arguments: argparse.Namespace) -> int:
    from distllm.clients.chat import run_chat

    with _client(arguments) as client:
        options = ChatOptions(max_tokens=arguments.max_tokens, temperature=arguments.temperature)
        return run_chat(client, system=arguments.system, options=options)


def _complete(arguments: argparse.Namespace) -> int:
    from distllm.clients.complete import run_complete

    with _client(arguments) as client:
        options = CompletionOptions(max_tokens=arguments.max_tokens, temperature=arguments.temperature)
        return run_complete(client, arguments.prompt, options=options)


def _client(arguments: argparse.Namespace) -> Client:
    return Client(arguments.url, model=arguments.model, api_key=arguments.api_key)


def _complain(message: str, status: int) -> int:
    print(f"distllm: {message}", file=sys.stderr)  # noqa: T201
    return status
