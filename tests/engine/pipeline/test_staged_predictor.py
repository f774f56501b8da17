"""Stages in one process predict what the whole model does, and with a codec still row by row."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distllm.engine.pipeline.staged_predictor import StagedPredictor
from distllm.engine.pipeline.wire.activation_codec import CODECS
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.engine.predictor import predictor
from tests.engine.pipeline.stages import config_of

WINDOW = [5, 3, 9, 30, 7, 11, 2, 40, 8, 17, 23, 4, 6, 1, 12, 33, 21, 19, 28]


@pytest.fixture
def staged(checkpoint: Callable[[str], Path]) -> StagedPredictor:
    return StagedPredictor(config_of(checkpoint("llama")), num_stages=3, max_tokens=len(WINDOW))


def test_without_a_codec_stages_have_the_bits_of_the_whole_model(
    staged: StagedPredictor, checkpoint: Callable[[str], Path]
) -> None:
    with predictor(config_of(checkpoint("llama")), len(WINDOW)) as whole:
        assert torch.equal(staged.predict(WINDOW, "none"), whole(WINDOW))


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "none"])
def test_what_a_codec_changes_is_a_function_of_a_token_s_prefix(staged: StagedPredictor, codec: CodecName) -> None:
    all_at_once = staged.predict(WINDOW, codec)
    assert not torch.equal(all_at_once, staged.predict(WINDOW, "none"))
    for length in (1, 7, 16):
        assert torch.equal(staged.predict(WINDOW[:length], codec), all_at_once[:length])


def test_more_stages_than_layers_are_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="--num-stages must be from 2 to 3"):
        StagedPredictor(config_of(checkpoint("llama")), num_stages=4, max_tokens=8)
