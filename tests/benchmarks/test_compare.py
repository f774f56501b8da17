"""The comparison's own logic, with contenders that answer at once."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import compare
from benchmarks.answers import Answer
from benchmarks.dialects import DIALECTS
from benchmarks.load import LoadResult, Target
from benchmarks.metrics import Goals, summarize
from benchmarks.prompts import Prompt
from benchmarks.rounds import Round
from benchmarks.servers import ServerFailedError
from benchmarks.synthetic_tokenizer import synthetic_tokenizer

if TYPE_CHECKING:
    from tests.benchmarks.conftest import StubServer


def test_contenders_are_measured_in_turn_and_their_medians_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic_tokenizer(20_000).save(str(tmp_path / "tokenizer.json"))
    order: list[str] = []

    def contender(name: str, *throughputs: float) -> object:
        values = iter(throughputs)

        def measure() -> Round:
            order.append(name)
            return Round(output_throughput=next(values))

        return measure

    contenders = {"ours": contender("ours", 90, 120, 100), "theirs": contender("theirs", 10, 9, 11)}
    monkeypatch.setattr(compare, "_contenders", lambda *_: contenders)
    results = tmp_path / "results"
    assert compare.main(["--model", str(tmp_path), "--results", str(results), "--rounds", "3"]) == 0
    assert order == ["ours", "theirs"] * 3
    saved = json.loads((results / "compare.json").read_text())
    assert saved["times_better"] == {"theirs": {"output_throughput": 10.0}}
    assert "| output tokens/s, whole run | 100 | 10 (10x) |" in (results / "compare.md").read_text()
    assert (results / "compare.png").stat().st_size > 5_000
    assert "round 3, theirs" in capsys.readouterr().out


def test_a_contender_that_fails_loses_no_round_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic_tokenizer(20_000).save(str(tmp_path / "tokenizer.json"))
    rounds = iter([Round(output_throughput=5.0)])

    def measure() -> Round:
        for one in rounds:
            return one
        raise compare.LoadFailedError("all requests failed")

    monkeypatch.setattr(compare, "_contenders", lambda *_: {"ours": measure})
    assert compare.main(["--model", str(tmp_path), "--results", str(tmp_path), "--rounds", "2"]) == 1
    assert json.loads((tmp_path / "compare.json").read_text())["medians"]["ours"]["output_throughput"] == 5.0
    assert "all requests failed" in capsys.readouterr().err


def test_a_peer_that_fails_loses_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic_tokenizer(20_000).save(str(tmp_path / "tokenizer.json"))

    def peer() -> Round:
        raise ServerFailedError("the server ended with status 1:\naccelerate is missing")

    contenders = {"ours": lambda: Round(output_throughput=7.0), "theirs": peer}
    monkeypatch.setattr(compare, "_contenders", lambda *_: contenders)
    assert compare.main(["--model", str(tmp_path), "--results", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "compare.json").read_text())["medians"]["ours"]["output_throughput"] == 7.0
    shown = capsys.readouterr()
    assert "| output tokens/s, whole run | 7 |" in shown.out
    assert shown.err.startswith("the comparison ended early: theirs: the server ended with status 1")


def test_what_benchmarks_start_is_asked_for_by_their_extra_and_pinned() -> None:
    """`transformers serve` refuses to start without accelerate."""
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert any(need.startswith("accelerate") for need in project["optional-dependencies"]["bench"])
    assert "\naccelerate==" in (root / "requirements.lock").read_text()


def test_a_failed_request_ends_the_comparison(stub: "StubServer") -> None:
    stub.failing = {0: "refuse"}
    target = Target(base_url=stub.url, model="stub", dialect=DIALECTS["vllm"])
    with pytest.raises(compare.LoadFailedError, match="the queue is full"):
        compare._run(target, [Prompt([1], 1)])


def test_decode_throughput_is_one_token_of_each_stream_in_a_median_tpot() -> None:
    answers = [Answer(0.0, (0.5, 0.5 + tpot_s), 1, 2, True) for tpot_s in (0.02, 0.04, 0.05)]
    summary = summarize(LoadResult(answers, 1.0, 0.0), Goals())
    assert compare._decode_throughput(summary) == pytest.approx(3 / 0.04)


def test_answers_of_one_token_have_no_decode_throughput() -> None:
    summary = summarize(LoadResult([Answer(0.0, (0.5,), 1, 1, True)], 1.0, 0.0), Goals())
    assert compare._decode_throughput(summary) is None
