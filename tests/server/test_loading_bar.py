"""What an operator sees of a start, with and without a terminal."""

import io
import logging

import pytest

from distllm.scheduler.messages import Loading
from distllm.server.loading_bar import LoadingBar

STAGES = [Loading("packing", 0.0), Loading("packing", 0.5), Loading("sizing", 1.0)]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stages: list[Loading]) -> None:
    bar = LoadingBar()
    for stage in stages:
        bar(stage)
    bar.close()


def test_without_a_terminal_each_stage_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distllm.server"):
        show(STAGES)
    assert caplog.messages == ["packing", "sizing"]


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, "distllm.server"):
        show(STAGES)
    assert caplog.messages == []
    assert "packing:  50%" in terminal.getvalue()
    assert "sizing: 100%" in terminal.getvalue()
