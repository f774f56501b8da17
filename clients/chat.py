"""A conversation in the terminal: `distllm chat`. Keeps the turns, streams the answers."""

import json
from collections.abc import Callable
from pathlib import Path

from distllm.clients.client import Client
from distllm.clients.errors import ClientError
from distllm.clients.options import ChatOptions
from distllm.clients.pace import Pace
from distllm.clients.results import ChatChunk, Message
from distllm.clients.terminal import BLOCK_QUOTE, Terminal

HELP = f"""\
/help          this list
/reset         forget the conversation, keep the system prompt
/system TEXT   set the system prompt; without TEXT remove it
/save FILE     write the conversation to a new JSON file
/quit          leave, like Ctrl-D
{BLOCK_QUOTE}            begin and end a message of several lines
Ctrl-C         stop the answer"""


def run_chat(
    client: Client,
    *,
    system: str | None = None,
    options: ChatOptions | None = None,
    terminal: Terminal | None = None,
) -> int:
    """Talk until the input ends. Piped input is one turn a line, and prints nothing but answers.

    Returns an exit status: 1 where the server cannot be used, or a turn of piped input failed.
    """
    chat = Chat(client, terminal or Terminal(), system, options or {})
    try:
        return chat.run()
    except ClientError as error:
        chat.terminal.error(error)
        return 1


class Chat:
    """One conversation. A turn without an answer leaves no trace in it; one that was cut off, what had come."""

    def __init__(self, client: Client, terminal: Terminal, system: str | None, options: ChatOptions) -> None:
        self.terminal = terminal
        self._client = client
        self._options = options
        self._system = system
        self._turns: list[Message] = []
        self._num_failures = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation as it is sent."""
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return system + self._turns

    def run(self) -> int:
        """Raises ClientError where the server does not even name its model."""
        model = self._client.model()
        if self.terminal.is_interactive:
            self.terminal.note(f"{model} at {self._client.base_url}. /help lists commands, Ctrl-D leaves.")
        for entry in self.terminal.entries("you> "):
            if entry == "/quit":
                break
            if entry.startswith("/"):
                self._command(entry)
            else:
                self._turn(entry)
        return 1 if self._num_failures and not self.terminal.is_interactive else 0

    def _command(self, entry: str) -> None:
        name, _, argument = entry.partition(" ")
        command: Callable[[str], str] | None = {
            "/help": lambda _: HELP,
            "/reset": self._reset,
            "/system": self._set_system,
            "/save": self._save,
        }.get(name)
        if command is None:
            self._fail(f"there is no {name}; /help lists the commands")
        else:
            self.terminal.note(command(argument.strip()))

    def _turn(self, text: str) -> None:
        self._turns.append({"role": "user", "content": text})
        answer = self._answer()
        if answer:
            self._turns.append({"role": "assistant", "content": answer})
        else:
            self._turns.pop()

    def _answer(self) -> str:
        """The answer to what has been said, shown as it comes. Whatever ends it, what had come is returned."""
        pace = Pace()
        parts: list[str] = []
        failure: ClientError | None = None
        try:
            outcome = self._stream(parts, pace)
        except KeyboardInterrupt:
            outcome = f"stopped · {pace.summary(None)}"
        except ClientError as error:
            outcome, failure = f"lost · {pace.summary(None)}", error
        self.terminal.write("\n")
        if failure is not None:
            self._num_failures += 1
            self.terminal.error(failure)
        if self.terminal.is_interactive and (parts or failure is None):
            self.terminal.note(outcome)
        return "".join(parts)

    def _stream(self, parts: list[str], pace: Pace) -> str:
        """Fill `parts` with the answer. Returns how fast it came."""
        usage = None
        with self._client.chat_stream(self.messages, include_usage=True, **self._options) as stream:
            for chunk in stream:
                usage = chunk.usage or usage
                self._show(chunk, parts, pace)
        return pace.summary(usage)

    def _show(self, chunk: ChatChunk, parts: list[str], pace: Pace) -> None:
        if chunk.text:
            pace.note_chunk()
            parts.append(chunk.text)
            self.terminal.write(chunk.text)

    def _reset(self, _: str) -> str:
        self._turns.clear()
        return "the conversation is forgotten"

    def _set_system(self, text: str) -> str:
        self._system = text or None
        return "the system prompt is set" if text else "there is no system prompt"

    def _save(self, name: str) -> str:
        if not name:
            return "give a file name: /save FILE"
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                json.dump(self.messages, file, ensure_ascii=False, indent=2)
        except OSError as error:
            return f"not saved: {error}"
        return f"saved {len(self.messages)} messages to {name}"

    def _fail(self, reason: str) -> None:
        self._num_failures += 1
        self.terminal.note(reason, style="red")
