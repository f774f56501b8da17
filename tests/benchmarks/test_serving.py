"""The load generator against a stub: what it sends, what it counts, what it saves."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from benchmarks.dialects import DIALECTS
from benchmarks.load import Target, run_load
from benchmarks.prompts import Prompt
from benchmarks.serving import main

if TYPE_CHECKING:
    from tests.benchmarks.conftest import StubServer


def prompts(number: int, output_len: int = 2) -> list[Prompt]:
    return [Prompt([1, 2, 3], output_len)] * number


def target(stub: "StubServer", timeout_s: float = 30.0) -> Target:
    return Target(base_url=stub.url, model="stub", dialect=DIALECTS["vllm"], timeout_s=timeout_s)


def test_the_command_measures_prints_and_saves(
    stub: "StubServer", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--num-prompts", "6", "--request-rate", "200", "--input-len", "5", "--output-len", "3"]
    save = ["--goodput", "ttft:60000", "--save", str(tmp_path / "out" / "run")]
    assert main(["--base-url", stub.url, *run, *save]) == 0
    printed = capsys.readouterr().out
    assert "Successful requests:                     6" in printed
    assert "Total generated tokens:                  18" in printed
    assert "Total input tokens:                      30" in printed
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["summary"]["num_output_tokens"] == 18
    assert len(saved["requests"]) == 6
    assert saved["settings"]["num_prompts"] == 6
    assert (tmp_path / "out" / "run.png").stat().st_size > 10_000


def test_an_infinite_rate_is_saved_as_json_can_hold_it(stub: "StubServer", tmp_path: Path) -> None:
    main(["--base-url", stub.url, "--num-prompts", "1", "--save", str(tmp_path / "run")])
    saved = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert saved["settings"]["request_rate"] == "inf"


def test_a_name_with_dots_is_saved_under_its_whole_name(stub: "StubServer", tmp_path: Path) -> None:
    for name in ("qwen2.5-rate1.5", "other.json"):
        main(["--base-url", stub.url, "--num-prompts", "1", "--save", str(tmp_path / name)])
    saved = {"qwen2.5-rate1.5.json", "qwen2.5-rate1.5.png", "other.json", "other.png"}
    assert {path.name for path in tmp_path.iterdir()} == saved


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save", "/dev/null/run"], "/dev/null"),
        (["--max-concurrency", "0"], "--max-concurrency must be at least 1"),
        (["--num-warmups", "-1"], "--num-warmups must be at least 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_sent(
    stub: "StubServer", capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--base-url", stub.url, *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert stub.bodies == []


def test_figures_of_no_answer_are_not_available(stub: "StubServer", capsys: pytest.CaptureFixture[str]) -> None:
    stub.failing = {0: "refuse"}
    assert main(["--base-url", stub.url, "--num-prompts", "1", "--num-warmups", "0"]) == 1
    printed = capsys.readouterr().out
    assert "P99 TTFT (ms):                           n/a" in printed


def test_failures_are_counted_and_shown(stub: "StubServer", capsys: pytest.CaptureFixture[str]) -> None:
    stub.failing = {1: "refuse", 2: "cut", 3: "error"}
    arguments = ["--num-prompts", "5", "--num-warmups", "0", "--max-concurrency", "1", "--output-len", "2"]
    assert main(["--base-url", stub.url, *arguments]) == 1
    printed = capsys.readouterr().out
    assert "Successful requests:                     2" in printed
    assert "Failed requests:                         3" in printed
    assert "the queue is full" in printed
    assert "before the reply's end" in printed
    assert "lost" in printed


async def test_no_more_requests_are_under_way_than_allowed(stub: "StubServer") -> None:
    stub.holds_until_under_way = 3
    result = await run_load(target(stub), prompts(12), [0.0] * 12, max_concurrency=3)
    assert all(answer.failure is None for answer in result.answers)
    assert stub.most_under_way == 3


async def test_without_a_cap_arrivals_do_not_wait_for_answers(stub: "StubServer") -> None:
    stub.holds_until_under_way = 8
    await run_load(target(stub), prompts(8), [0.0] * 8)
    assert stub.most_under_way == 8


async def test_a_silent_server_fails_the_request_and_not_the_run(stub: "StubServer") -> None:
    stub.token_delay_s = 0.5
    result = await run_load(target(stub, timeout_s=0.05), prompts(2), [0.0, 0.0])
    assert ["no whole reply" in (answer.failure or "") for answer in result.answers] == [True, True]


async def test_a_server_that_is_gone_fails_every_request() -> None:
    gone = Target(base_url="http://127.0.0.1:9", model="x", dialect=DIALECTS["vllm"])
    result = await run_load(gone, prompts(2), [0.0, 0.0])
    assert all("Connect" in (answer.failure or "") for answer in result.answers)


def test_warm_ups_are_not_counted_and_share_no_prefix(stub: "StubServer") -> None:
    main(["--base-url", stub.url, "--num-prompts", "2", "--num-warmups", "1", "--input-len", "9"])
    warmup, *run = (body["prompt"] for body in stub.bodies)
    assert len(run) == 2
    assert warmup == run[0][::-1]


def test_a_dialect_of_text_needs_a_tokenizer(stub: "StubServer", capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base-url", stub.url, "--dialect", "transformers"])
    assert "give --tokenizer" in capsys.readouterr().err


def test_text_is_decoded_by_the_tokenizer(stub: "StubServer", tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"one": 0, "two": 1}, unk_token="one"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = ["--dialect", "transformers", "--tokenizer", str(tmp_path), "--num-prompts", "1"]
    assert main(["--base-url", stub.url, *arguments, "--input-len", "4"]) == 0
    assert set(stub.bodies[-1]["prompt"].split()) <= {"one", "two"}
    assert len(stub.bodies[-1]["prompt"].split()) == 4


def test_no_server_is_said_and_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base-url", "http://127.0.0.1:9", "--num-prompts", "1"])
    assert "no server answers" in capsys.readouterr().err
