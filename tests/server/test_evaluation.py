"""`distllm eval` as a user types it."""

import json
import shutil
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


def test_a_codec_is_compared_with_the_same_stages_without_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little fox. The fox lived by the river.")
    assert cli.main(["eval", "--codec", "fp8", "--num-stages", "3", "--text", str(text)]) == 0
    shown = capfd.readouterr().out
    for words in ("over 3 stages, in fp8", "without a codec: ", "KL divergence", "top-1 agreement"):
        assert words in shown


@pytest.mark.parametrize("change", ["swapped tokens", "other merges"])
def test_models_that_mean_other_tokens_by_their_ids_are_not_compared(
    tmp_path: Path, change: str, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint_path(), other)
    document = json.loads((other / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    if change == "swapped tokens":
        first, second = sorted(vocabulary)[100:102]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        reason = f"token {first!r} is {vocabulary[second]} in {checkpoint_path()}, {vocabulary[first]} in {other}"
    else:
        document["model"]["merges"] = document["model"]["merges"][:5]
        reason = "cut the text into different tokens"
    (other / "tokenizer.json").write_text(json.dumps(document))
    assert cli.main(["eval", str(checkpoint_path()), "--against", str(other)]) == 1
    shown = capfd.readouterr().err
    assert reason in shown
    assert len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--window", "1"], 2, "--window must be at least 2"),
        (["--text", "/no/such/file"], 2, "--text /no/such/file cannot be read"),
        (["--against", "/no/such/directory"], 1, "/no/such/directory"),
        (["--num-stages", "2"], 2, "--num-stages needs --codec"),
        (["--codec", "fp8", "--num-stages", "7"], 1, "--num-stages must be from 2 to 6"),
        (["--codec", "fp8", "--against", "."], 2, "leave --against out"),
        (["--codec", "fp8", "--tensor-parallel-size", "2"], 2, "leave --tensor-parallel-size out"),
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
