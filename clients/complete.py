"""One completion in the terminal: `distllm complete`. The text goes to stdout as it comes."""

from distllm.clients.client import Client
from distllm.clients.errors import ClientError
from distllm.clients.options import CompletionOptions
from distllm.clients.pace import Pace
from distllm.clients.terminal import Terminal

_NO_PROMPT = 'no prompt; give one as an argument or pipe one in: echo "Once upon a time" | distllm complete'
_EXIT_INTERRUPTED = 130


def run_complete(
    client: Client,
    prompt: str | None = None,
    *,
    options: CompletionOptions | None = None,
    terminal: Terminal | None = None,
) -> int:
    """Print the completion of `prompt`, or of all of stdin where it is None. Returns an exit status.

    Statistics go to stderr, and only where a person reads the answer.
    """
    terminal = terminal or Terminal()
    try:
        if prompt is None:
            prompt = "" if terminal.is_interactive else terminal.read_all().removesuffix("\n")
        if not prompt:
            terminal.note(_NO_PROMPT, style="red")
            return 2
        outcome = _stream(client, prompt, options or {}, terminal)
    except ClientError as error:
        terminal.error(error)
        return 1
    except KeyboardInterrupt:
        terminal.write("\n")
        return _EXIT_INTERRUPTED
    if terminal.output.isatty():
        terminal.note(outcome)
    return 0


def _stream(client: Client, prompt: str, options: CompletionOptions, terminal: Terminal) -> str:
    pace = Pace()
    usage = None
    with client.complete_stream(prompt, include_usage=True, **options) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            if chunk.text:
                pace.note_chunk()
                terminal.write(chunk.text)
    terminal.write("\n")
    return pace.summary(usage)
