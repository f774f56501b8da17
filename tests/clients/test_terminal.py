"""The two terminal commands: what reaches stdout, what reaches stderr, what is remembered between turns."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distllm.clients import Client
from distllm.clients.chat import Chat, run_chat
from distllm.clients.complete import run_complete
from distllm.clients.errors import AuthenticationError, ServerUnreachableError
from distllm.clients.pace import Pace
from distllm.clients.results import Usage
from distllm.clients.terminal import Terminal, describe, start_command

if TYPE_CHECKING:
    from tests.clients.conftest import ScriptedServer


class Screen:
    """A terminal whose two outputs can be read back."""

    def __init__(self, typed: str, is_interactive: bool = False) -> None:
        self._output, self._notes = io.StringIO(), io.StringIO()
        self.terminal = Terminal(io.StringIO(typed), self._output, self._notes)
        self.terminal.is_interactive = is_interactive

    @property
    def output(self) -> str:
        return self._output.getvalue()

    @property
    def notes(self) -> str:
        return self._notes.getvalue()


@pytest.fixture
def client(server: "ScriptedServer") -> Iterator[Client]:
    with Client(server.url, model="tiny") as client:
        yield client


def says(server: "ScriptedServer", *pieces: str, **fields: Any) -> None:
    """Script a streamed answer that is a completion's and a chat's at once."""
    frames = []
    for number, text in enumerate(pieces, start=1):
        reason = "stop" if number == len(pieces) else None
        choice = {"index": 0, "text": text, "delta": {"content": text}, "finish_reason": reason}
        frames.append(f"data: {json.dumps({'id': '1', 'choices': [choice]})}\n\n".encode())
    usage = {"prompt_tokens": 1, "completion_tokens": 20}
    frames.append(f"data: {json.dumps({'id': '1', 'choices': [], 'usage': usage})}\n\n".encode())
    server.answers(*frames, b"data: [DONE]\n\n")


def refuses(server: "ScriptedServer", message: str, status: int = 400) -> None:
    server.answers(json.dumps({"error": {"message": message}}).encode(), status=status)


def test_piped_chat_prints_the_answers_alone(client: Client, server: "ScriptedServer") -> None:
    says(server, "fo", "ur")
    says(server, "five")
    screen = Screen("2+2\n\n2+3\n")
    assert run_chat(client, system="Be brief.", options={"temperature": 0}, terminal=screen.terminal) == 0
    assert screen.output == "four\nfive\n"
    assert screen.notes == ""
    assert server.seen[1].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "2+3"},
    ]
    assert server.seen[1].body["temperature"] == 0


def test_a_failed_turn_is_shown_forgotten_and_counted(client: Client, server: "ScriptedServer") -> None:
    refuses(server, "prompt has 9000 tokens; this model accepts 8192")
    says(server, "fine")
    screen = Screen("too long\nshort\n")
    assert run_chat(client, terminal=screen.terminal) == 1
    assert "this model accepts 8192" in screen.notes
    assert server.seen[1].body["messages"] == [{"role": "user", "content": "short"}]


def test_what_had_come_before_the_server_was_lost_stays_in_the_conversation(
    client: Client, server: "ScriptedServer"
) -> None:
    frame = b'data: {"id": "1", "choices": [{"delta": {"content": "half"}, "index": 0, "finish_reason": null}]}\n\n'
    server.answers(frame, is_cut=True)
    says(server, "fine")
    screen = Screen("tell me\ngo on\n")
    assert run_chat(client, terminal=screen.terminal) == 1
    assert screen.output == "half\nfine\n"
    assert "broke" in screen.notes
    assert server.seen[1].body["messages"][1] == {"role": "assistant", "content": "half"}


@pytest.mark.parametrize("command", [run_chat, run_complete])
def test_an_input_that_is_no_text_is_refused_in_one_line(client: Client, command: Any) -> None:
    screen = Screen("")
    screen.terminal.source = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    assert command(client, terminal=screen.terminal) == 1
    assert screen.notes.startswith("the input is not text")
    assert screen.notes.count("\n") == 1


def test_a_person_sees_the_pace_of_each_answer(
    client: Client, server: "ScriptedServer", monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["hello"])

    def fake_input(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", fake_input)
    says(server, "a", "b")
    screen = Screen("", is_interactive=True)
    assert run_chat(client, terminal=screen.terminal) == 0
    assert "20 tokens" in screen.notes
    assert "tokens/s" in screen.notes
    assert "TTFT" in screen.notes


def test_ctrl_c_stops_the_answer_and_keeps_what_had_come(
    client: Client, server: "ScriptedServer", monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = b'data: {"id": "1", "choices": [{"delta": {"content": "on "}, "index": 0, "finish_reason": null}]}\n\n'
    server.answers(frame, is_endless=True)
    says(server, "next")
    screen = Screen("count\nagain\n")
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(screen.terminal, "write", write)
    assert run_chat(client, terminal=screen.terminal) == 0
    assert server.client_left.wait(10)
    assert server.seen[1].body["messages"][1] == {"role": "assistant", "content": "on on on "}
    assert "".join(shown[4:]) == "next\n"


def test_commands_change_the_conversation(client: Client, server: "ScriptedServer", tmp_path: Path) -> None:
    says(server, "yes")
    saved = tmp_path / "talk.json"
    entered = f"one\n/reset\n/system Be kind.\ntwo\n/save {saved}\n/save {saved}\n/help\n/quit\nnever sent\n"
    screen = Screen(entered)
    assert run_chat(client, terminal=screen.terminal) == 0
    assert len(server.seen) == 2
    assert json.loads(saved.read_text()) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "yes"},
    ]
    assert "File exists" in screen.notes
    assert "/system TEXT" in screen.notes


def test_an_unknown_command_is_not_sent_to_the_model(client: Client, server: "ScriptedServer") -> None:
    screen = Screen("/rest\n")
    assert run_chat(client, terminal=screen.terminal) == 1
    assert "there is no /rest" in screen.notes
    assert server.seen == []


def test_a_message_may_have_several_lines(client: Client, server: "ScriptedServer") -> None:
    says(server, "ok")
    screen = Screen('"""first\n\n  second\n"""\n"""one line"""\n')
    run_chat(client, terminal=screen.terminal)
    sent = [seen.body["messages"][-1]["content"] for seen in server.seen]
    assert sent == ["first\n\n  second", "one line"]


def test_a_model_cannot_drive_the_terminal() -> None:
    screen = Screen("")
    screen.terminal.write("red\x1b[31m \x07tab\tline\n\x9bdone\r")
    assert screen.output == "red[31m tab\tline\ndone"


def test_complete_takes_its_prompt_from_the_argument(client: Client, server: "ScriptedServer") -> None:
    says(server, " a", " time")
    screen = Screen("not read")
    assert run_complete(client, "Once upon", options={"max_tokens": 5}, terminal=screen.terminal) == 0
    assert screen.output == " a time\n"
    assert screen.notes == ""
    assert server.seen[0].body["prompt"] == "Once upon"
    assert server.seen[0].body["max_tokens"] == 5


def test_complete_takes_its_prompt_from_stdin(client: Client, server: "ScriptedServer") -> None:
    says(server, "x")
    assert run_complete(client, terminal=Screen("two\nlines\n").terminal) == 0
    assert server.seen[0].body["prompt"] == "two\nlines"


def test_complete_without_a_prompt_says_how_to_give_one(client: Client) -> None:
    screen = Screen("")
    assert run_complete(client, terminal=screen.terminal) == 2
    assert "distllm complete" in screen.notes


def test_complete_reports_a_refusal(client: Client, server: "ScriptedServer") -> None:
    refuses(server, "top_p must be at most 1")
    screen = Screen("")
    assert run_complete(client, "x", options={"top_p": 2}, terminal=screen.terminal) == 1
    assert "top_p must be at most 1" in screen.notes


@pytest.mark.parametrize("command", [run_chat, run_complete])
def test_no_server_is_answered_with_the_command_that_starts_one(command: Any) -> None:
    screen = Screen("hello\n")
    with Client("http://127.0.0.1:9") as client:
        assert command(client, terminal=screen.terminal) == 1
    assert "distllm serve --port 9" in screen.notes


def test_the_start_command_names_the_port_unless_it_is_the_usual_one() -> None:
    assert start_command("http://127.0.0.1:8000") == "distllm serve"
    assert start_command("http://127.0.0.1:9001/") == "distllm serve --port 9001"
    assert start_command("http://host") == "distllm serve"


def test_a_missing_key_is_answered_with_the_flag() -> None:
    assert "--api-key" in describe(AuthenticationError("no key", status=401))
    assert "distllm serve" in describe(ServerUnreachableError("http://127.0.0.1:8000", "refused"))


def test_the_pace_counts_tokens_by_usage_and_chunks_without_it() -> None:
    pace = Pace()
    assert pace.summary(None) == "no tokens"
    pace.note_chunk()
    assert pace.summary(None).startswith("1 token · TTFT")
    pace.note_chunk()
    assert pace.summary(Usage(prompt_tokens=1, completion_tokens=9)).startswith("9 tokens · ")


def test_tokens_that_came_in_one_piece_are_counted_from_the_request_on() -> None:
    pace = Pace()
    pace.note_chunk()
    assert "tokens/s" in pace.summary(Usage(prompt_tokens=1, completion_tokens=9))


def test_the_conversation_is_what_is_sent(client: Client, server: "ScriptedServer") -> None:
    says(server, "yes")
    chat = Chat(client, Screen("one\n").terminal, "Be kind.", {})
    chat.run()
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
