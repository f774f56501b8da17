"""Our own client, its terminal commands and the load generator against the real server."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from benchmarks.serving import main as bench
from distllm.clients import AsyncClient, BadRequestError, Client, NotFoundError
from distllm.clients.results import Message

if TYPE_CHECKING:
    from tests.conftest import RunningServer

PROMPT = "Once upon a time"
QUESTION: list[Message] = [{"role": "user", "content": "What is 2 plus 3?"}]


@pytest.fixture
def client(embedded_server: "RunningServer") -> Iterator[Client]:
    with Client(embedded_server.url) as client:
        yield client


def run(server: "RunningServer", *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distllm.server", words[0], "--url", server.url, *words[1:]]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=120)


def test_a_streamed_completion_is_the_plain_one(client: Client) -> None:
    whole = client.complete(PROMPT, max_tokens=24, temperature=0)
    chunks = list(client.complete_stream(PROMPT, max_tokens=24, temperature=0, include_usage=True))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24


def test_a_streamed_chat_is_the_plain_one(client: Client) -> None:
    whole = client.chat(QUESTION, temperature=0, max_tokens=16)
    streamed = "".join(chunk.text for chunk in client.chat_stream(QUESTION, temperature=0, max_tokens=16))
    assert streamed == whole.text
    assert whole.text


def test_logprobs_are_read_in_both_forms(client: Client) -> None:
    completion = client.complete(PROMPT, max_tokens=2, temperature=0, logprobs=2, echo=True).choices[0]
    assert completion.logprobs is not None
    assert completion.logprobs.token_logprobs[0] is None
    assert completion.logprobs.text_offset is not None
    assert completion.logprobs.text_offset[0] == 0
    chat = client.chat(QUESTION, max_tokens=2, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    assert chat.logprobs is not None
    assert chat.logprobs.content
    assert len(chat.logprobs.content[0].top_logprobs) == 3


def test_tokens_and_text_are_each_others_inverse(client: Client) -> None:
    tokenized = client.tokenize(PROMPT)
    assert tokenized.count == len(tokenized.tokens)
    assert client.detokenize(tokenized.tokens).prompt == PROMPT


def test_a_refusal_names_its_field(client: Client) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.complete(PROMPT, top_p=3)
    assert (caught.value.status, caught.value.param) == (400, "top_p")


def test_an_unknown_model_is_not_found(embedded_server: "RunningServer") -> None:
    with Client(embedded_server.url, model="another") as client, pytest.raises(NotFoundError, match="another"):
        client.complete(PROMPT)


def test_the_server_says_that_it_is_ready(client: Client) -> None:
    assert client.health().is_ready
    assert client.wait_until_ready(timeout_s=5).is_ready


def test_leaving_a_stream_frees_its_sequence(client: Client) -> None:
    with client.complete_stream(PROMPT, max_tokens=2000, ignore_eos=True) as stream:
        next(stream)
        assert _num_running(client) >= 1
    deadline_s = time.monotonic() + 20
    while _num_running(client) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert _num_running(client) == 0


async def test_many_async_streams_at_once_get_the_same_answer(embedded_server: "RunningServer") -> None:
    async def answer(client: AsyncClient) -> str:
        stream = await client.complete_stream(PROMPT, max_tokens=16, temperature=0)
        return "".join([chunk.text async for chunk in stream])

    async with AsyncClient(embedded_server.url) as client:
        answers = await asyncio.gather(*(answer(client) for _ in range(12)))
    assert len(set(answers)) == 1


def test_distllm_chat_answers_a_piped_question(embedded_server: "RunningServer", client: Client) -> None:
    chat = run(embedded_server, "chat", "--temperature", "0", typed="What is 2 plus 3?\n")
    assert (chat.returncode, chat.stderr) == (0, "")
    assert chat.stdout == client.chat(QUESTION, temperature=0).text + "\n"


def test_distllm_complete_continues_a_prompt(embedded_server: "RunningServer", client: Client) -> None:
    wanted = client.complete(PROMPT, temperature=0, max_tokens=12).text + "\n"
    options = ("--temperature", "0", "--max-tokens", "12")
    assert run(embedded_server, "complete", *options, PROMPT).stdout == wanted
    assert run(embedded_server, "complete", *options, typed=PROMPT + "\n").stdout == wanted


def test_the_load_generator_measures_the_real_server(
    embedded_server: "RunningServer", capsys: pytest.CaptureFixture[str]
) -> None:
    load = ["--num-prompts", "8", "--input-len", "16", "--output-len", "8", "--prefix-len", "16"]
    assert bench(["--base-url", embedded_server.url, *load]) == 0
    printed = capsys.readouterr().out
    assert "Successful requests:                     8" in printed
    assert "Total input tokens:                      256" in printed
    assert "Total generated tokens:                  64" in printed


def _num_running(client: Client) -> float:
    """Of /health, which tells the engine's figures."""
    return float(client.health().details["engine"]["num_running"])
