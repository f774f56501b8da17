"""What a start reads from a checkpoint, and how it refuses what it cannot serve."""

import json
from pathlib import Path

import pytest

from distllm.server.config_sources import load_settings
from distllm.server.launch import load_text_side, start_message
from tests.server.checkpoints import byte_level_tokenizer, write_checkpoint


def test_answers_end_at_the_tokenizers_end_token_as_well_as_the_generation_configs(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, byte_level_tokenizer(), eos_token="<|end|>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    tokenizer, defaults = load_text_side(load_settings({}, None, {}), tmp_path)
    assert defaults.eos_token_ids == (0, 7, tokenizer.eos_token_id)


def test_offloading_is_told_to_the_engine_in_bytes_and_with_a_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"offload": "disk", "offload_dir": "layers", "weights_memory": "1.5"}
    engine = start_message(load_settings(flags, None, {}), tmp_path).engine
    assert (engine.offload, engine.offload_dir) == ("disk", str(tmp_path / "layers"))
    assert engine.weights_bytes == 3 << 29
