"""`distllm convert` as a user types it."""

import shutil
from pathlib import Path

import pytest

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.embedded import checkpoint_path
from distllm.server import cli
from distllm.server.config_sources import load_settings
from distllm.server.launch import start_message

MODEL = str(checkpoint_path())
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model for two ranks."""
    out = tmp_path_factory.mktemp("converted") / "two"
    assert cli.main(["convert", MODEL, str(out), "--tensor-parallel-size", "2"]) == 0
    return out


def test_it_prints_the_descriptor_and_how_to_serve_it(tmp_path: Path, capfd: Output) -> None:
    out = tmp_path / "one"
    assert cli.main(["convert", MODEL, str(out), "--tensor-parallel-size", "1"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown == [f"{out}/ds_inference_config.json", f"serve it with `distllm serve {out}`"]
    assert (out / "model.safetensors").read_bytes() == (checkpoint_path() / "model.safetensors").read_bytes()


def test_the_way_back_gives_the_file_that_ships(two_ranks: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    assert cli.main(["convert", str(two_ranks), str(back), "--tensor-parallel-size", "1"]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (back / name).read_bytes() == (checkpoint_path() / name).read_bytes()


def test_verify_reads_every_file_and_names_one_that_changed(two_ranks: Path, tmp_path: Path, capfd: Output) -> None:
    copy = shutil.copytree(two_ranks, tmp_path / "copy")
    assert cli.main(["convert", "--verify", str(copy)]) == 0
    assert "all as they were written" in capfd.readouterr().out
    data = bytearray((copy / "tokenizer.json").read_bytes())
    data[100] ^= 1
    (copy / "tokenizer.json").write_bytes(data)
    assert cli.main(["convert", "--verify", str(copy)]) == 1
    assert "tokenizer.json is not what was written: its SHA-256 differs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([MODEL], 2, "convert needs two places"),
        ([MODEL, "OUT"], 2, "convert needs --tensor-parallel-size"),
        ([MODEL, "OUT", "--tensor-parallel-size", "0"], 2, "--tensor-parallel-size must be at least 1, not 0"),
        ([MODEL, "OUT", "--tensor-parallel-size", "7"], 1, "6 attention heads cannot be divided over 7 ranks"),
        (["/no/such/model", "OUT", "--tensor-parallel-size", "2"], 1, "there is no directory /no/such/model"),
        ([MODEL, "/proc", "--tensor-parallel-size", "2"], 1, "/proc is where a disk is mounted"),
        (["--verify", MODEL], 1, "has no ds_inference_config.json"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], status: int, reason: str, capfd: Output
) -> None:
    given = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    assert cli.main(["convert", *given]) == status
    shown = capfd.readouterr().err
    assert reason in shown
    assert len(shown.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "size"), [({}, 2), ({"tensor_parallel_size": 2}, 2)])
def test_a_start_takes_the_number_of_ranks_of_the_checkpoint(
    two_ranks: Path, flags: dict[str, int], size: int
) -> None:
    assert start_message(load_settings(flags, None, {}), two_ranks).engine.tensor_parallel_size == size


@pytest.mark.parametrize("size", ["auto", 2])
def test_a_start_from_any_other_checkpoint_takes_the_setting(size: str | int) -> None:
    engine = start_message(load_settings({"tensor_parallel_size": size}, None, {}), checkpoint_path()).engine
    assert engine.tensor_parallel_size == (None if size == "auto" else size)


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_is_refused_where_it_is_asked_for(two_ranks: Path, size: int) -> None:
    settings = load_settings({"tensor_parallel_size": size}, None, {})
    with pytest.raises(CheckpointError, match=f"converted for tensor_parallel_size 2, not {size}"):
        start_message(settings, two_ranks)
