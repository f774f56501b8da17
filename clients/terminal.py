"""The terminal as the two commands use it: model text out, notes out of the way on stderr, prompts in."""

import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

from distllm.clients.errors import APIError, ClientError, InvalidCallError, ServerUnreachableError

_CONTROLS = dict.fromkeys([*range(0x20), 0x7F, *range(0x80, 0xA0)])
_UNSAFE = {code: None for code in _CONTROLS if chr(code) not in "\n\t"}

BLOCK_QUOTE = '"""'


class Terminal:
    """Answers go to `output` as they are, so that they can be piped; everything else goes to `notes`.

    `is_interactive` says that a person types: then there are prompts, statistics and line editing.
    """

    def __init__(
        self, source: TextIO | None = None, output: TextIO | None = None, notes: TextIO | None = None
    ) -> None:
        self.source = source or sys.stdin
        self.output = output or sys.stdout
        self._notes = Console(file=notes or sys.stderr, highlight=False, markup=False)
        self.is_interactive = self.source.isatty()
        if self.is_interactive:
            _enable_line_editing()

    def write(self, text: str) -> None:
        """Model text, at once. Control characters are dropped: a model must not drive the terminal."""
        self.output.write(text.translate(_UNSAFE))
        self.output.flush()

    def note(self, text: str, style: str = "dim") -> None:
        self._notes.print(text, style=style, soft_wrap=True)

    def error(self, error: ClientError) -> None:
        self.note(describe(error), style="red")

    def entries(self, prompt: str) -> Iterator[str]:
        """What the user enters until the input ends: lines, or blocks between lines of three double quotes."""
        while (line := self._read_line(prompt)) is not None:
            if line.lstrip().startswith(BLOCK_QUOTE):
                yield self._read_block(line.lstrip().removeprefix(BLOCK_QUOTE))
            elif line.strip():
                yield line.strip()

    def read_all(self) -> str:
        """The whole input. Raises InvalidCallError where it is not text."""
        try:
            return self.source.read()
        except UnicodeDecodeError as error:
            raise InvalidCallError(f"the input is not text: {error}") from error

    def _read_block(self, line: str | None) -> str:
        lines: list[str] = []
        while line is not None:
            if line.rstrip().endswith(BLOCK_QUOTE):
                lines.append(line.rstrip().removesuffix(BLOCK_QUOTE))
                break
            lines.append(line)
            line = self._read_line("... ")
        return "\n".join(lines).strip("\n")

    def _read_line(self, prompt: str) -> str | None:
        """The next line without its end, None at the end of the input. Ctrl-C empties the line."""
        while True:
            try:
                if self.is_interactive:
                    return input(prompt)
                line = self.source.readline()
                return line.removesuffix("\n") if line else None
            except UnicodeDecodeError as error:
                raise InvalidCallError(f"the input is not text: {error}") from error
            except EOFError:
                self.note("")
                return None
            except KeyboardInterrupt:
                self.note("\n/quit or Ctrl-D leaves")


def describe(error: ClientError) -> str:
    """What happened and what to do, for a person at a terminal."""
    match error:
        case ServerUnreachableError():
            return f"{error}\nStart one in another terminal with: {start_command(error.url)}"
        case APIError(status=401):
            return f"{error}\nGive the server's key with --api-key or DISTLLM_API_KEY."
        case _:
            return str(error)


def start_command(url: str) -> str:
    """The command that starts a server where `url` points."""
    port = url.rstrip("/").rpartition(":")[2]
    return "distllm serve" if port == "8000" or not port.isdigit() else f"distllm serve --port {port}"


def _enable_line_editing() -> None:
    """`input` edits lines and keeps a history once readline is loaded, where the platform has it."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
