"""What the commands that talk to a running server have in common."""

import argparse
import os
from typing import Any

from distllm.clients import Client

DEFAULT_URL = "http://127.0.0.1:8000"


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help="bearer token, if it wants one")
    parser.add_argument("--model", metavar="NAME", help="model name; none: the first that the server lists")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer; none: the server's")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; none: the model's default")


def client_of(arguments: argparse.Namespace) -> Client:
    """The server may know several keys, separated by commas: any of them will do."""
    key = arguments.api_key or os.environ.get("DISTLLM_API_KEY", "").partition(",")[0]
    return Client(arguments.url, model=arguments.model, api_key=key or None)


def given_options(arguments: argparse.Namespace) -> Any:
    """The sampling options that were asked for; the rest is the server's to choose."""
    options = {name: getattr(arguments, name) for name in ("max_tokens", "temperature")}
    return {name: value for name, value in options.items() if value is not None}
