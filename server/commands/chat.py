"""`distllm chat`: chat with a running server."""

import argparse
from typing import Any

from distllm.server.commands.client_flags import add_client_flags, client_of, given_options

_EPILOG = """\
examples:
  distllm chat                                      talk to the server at http://127.0.0.1:8000
  distllm chat --system "Answer in one word."       with a system message
  echo "What is 3 plus 4?" | distllm chat           one turn a line; only the answers are printed

keys: Enter sends, \"\"\" begins and ends a message of several lines, Ctrl-C stops an answer, Ctrl-D leaves.
In the conversation, /help lists the commands. DISTLLM_API_KEY holds the key where --api-key is not given.
"""


def add(commands: Any) -> None:
    chat = commands.add_parser(
        "chat",
        help="chat with a running server",
        description="Chat in the terminal; answers stream as they are generated.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_client_flags(chat)
    chat.add_argument("--system", help="system message to begin with")
    chat.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from distllm.clients.chat import run_chat

    with client_of(arguments) as client:
        return run_chat(client, system=arguments.system, options=given_options(arguments))
