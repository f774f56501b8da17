"""What a peer's operator sees of loading, with and without a terminal."""

import io
import logging

import pytest

from distllm.engine.pipeline.peer.progress_display import ProgressDisplay


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(display: ProgressDisplay) -> None:
    for activity, done in (("fetching", 0.0), ("fetching", 0.5), ("fetching", 1.0), ("packing", 0.25)):
        display.show(activity, done)
    display.close()


def test_without_a_terminal_there_are_lines_but_not_many(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distllm.pipeline"):
        show(ProgressDisplay())
    assert caplog.messages == ["fetching: 0%", "packing: 25%"]


def test_lines_go_on_while_an_activity_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distllm.pipeline"):
        show(ProgressDisplay(line_every_s=-1.0))
    assert caplog.messages == ["fetching: 0%", "fetching: 50%", "fetching: 100%", "packing: 25%"]


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, "distllm.pipeline"):
        show(ProgressDisplay())
    assert caplog.messages == []
    assert "fetching: 100%" in terminal.getvalue()
    assert "packing:  25%" in terminal.getvalue()
