"""The client commands against the embedded model."""

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RunningServer


def run(server: "RunningServer", *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distllm.server", *arguments, "--url", server.url]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=120)


def test_an_answer_may_fill_the_context_that_is_left(embedded_server: "RunningServer") -> None:
    """No max_tokens is sent, so a conversation longer than half of the context is no error."""
    question = "Tell me a story. " * 60
    ended = run(embedded_server, "chat", text=question + "\n")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", [("chat",), ("complete", "x")])
def test_a_temperature_that_is_no_number_is_refused_in_one_line(
    embedded_server: "RunningServer", command: tuple[str, ...]
) -> None:
    ended = run(embedded_server, *command, "--temperature", "nan", text="hello\n")
    assert ended.returncode == 1
    assert ended.stderr.startswith("the request cannot be written as JSON")
    assert ended.stderr.count("\n") == 1


def test_complete_asks_for_no_length_of_its_own(embedded_server: "RunningServer") -> None:
    by_default = run(embedded_server, "complete", "Once upon a time", "--temperature", "0")
    asked = run(embedded_server, "complete", "Once upon a time", "--temperature", "0", "--max-tokens", "16")
    assert by_default.stdout == asked.stdout != "\n"


def test_a_reader_that_stops_reading_ends_complete_quietly(embedded_server: "RunningServer") -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        command = [sys.executable, "-m", "distllm.server", "complete", "Once", "--url", embedded_server.url]
        ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (141, "")
