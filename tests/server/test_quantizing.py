"""`distllm quantize` as a user types it."""

from pathlib import Path

import pytest

from distllm.engine.embedded import checkpoint_path
from distllm.server import cli


def test_the_output_is_said_how_large_it_is_and_how_to_serve_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert cli.main(["quantize", str(checkpoint_path()), str(out), "--quantization", "int4"]) == 0
    shown = capfd.readouterr().out
    assert "w4g32" in shown
    assert f"distllm serve {out}" in shown
    assert cli.main(["plan", str(out)]) == 0
    assert "compressed-tensors-w4 and bfloat16" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "give --quantization int8 or int4"),
        (["--quantization", "int3"], 2, "must be 'int8' or 'int4', not 'int3'"),
        (["--quantization", "int4", "--group-size", "48"], 2, "group_size 48 is unknown; choose 32, 64 or 128"),
        (["--quantization", "int4", "--dynamic-activations"], 2, "dynamic_activations goes with int8 weights"),
        (["--group-size", "32"], 2, "group_size says how to quantize: give --quantization"),
        (
            ["--quantization", "int4", "--group-size", "128"],
            1,
            "128 does not divide the 192 inputs of model.layers.0",
        ),
    ],
)
def test_wrong_combinations_are_refused_in_one_line(
    tmp_path: Path, arguments: list[str], status: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert cli.main(["quantize", str(checkpoint_path()), str(out), *arguments]) == status
    shown = capfd.readouterr().err
    assert reason in shown
    assert len(shown.strip().splitlines()) == 1
    assert not out.exists()
