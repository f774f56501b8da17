"""`distllm eval` as a user types it."""

from pathlib import Path

import pytest

from distllm.engine.embedded import checkpoint_path
from distllm.server import cli


def test_a_model_against_its_quantized_self_has_every_figure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text, model = tmp_path / "text", str(checkpoint_path())
    text.write_text("Once upon a time there was a little fox. The fox lived by the river.")
    arguments = ["eval", model, "--quantization", "int4", "--against", model, "--text", str(text), "--window", "8"]
    assert cli.main(arguments) == 0
    shown = capfd.readouterr().out
    for word in ("tokens", "perplexity", "KL divergence", "nats a token", "top-1 agreement"):
        assert word in shown
    assert "+" in shown or "-" in shown


def test_one_model_has_its_perplexity_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little fox.")
    assert cli.main(["eval", "--text", str(text)]) == 0
    assert "KL divergence" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--window", "1"], 2, "--window must be at least 2"),
        (["--text", "/no/such/file"], 2, "--text /no/such/file cannot be read"),
        (["--against", "/no/such/directory"], 1, "/no/such/directory"),
        (["--quantization", "int4", "--group-size", "128"], 1, "does not divide the 192 inputs of model.layers.0"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    arguments: list[str], status: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *arguments]) == status
    shown = capfd.readouterr().err
    assert reason in shown
    assert len(shown.strip().splitlines()) == 1
