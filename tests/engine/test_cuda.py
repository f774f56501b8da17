"""On a CUDA device the reference path serves the same models with the same logits."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.interface import BlockId, SampleSpec, SequenceChunk, SequenceId, StepInput
from distllm.engine.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = (
    "llama",
    "mistral",
    "qwen3",
    "phi3",
    "gemma2",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
)
TOLERANCE = 1e-3
TOKEN_IDS = tuple(range(2, 42))
OTHER_IDS = tuple(range(90, 60, -1))


def chunk(token_ids: Sequence[int], start: int, end: int, blocks: Sequence[int]) -> SequenceChunk:
    table = [BlockId(block) for block in blocks]
    return SequenceChunk(SequenceId(blocks[0]), token_ids[start:end], start, table, None)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_steps_have_the_logits_of_the_plain_forward(
    serve: Callable[..., Any], plain_logits: Callable[[str, tuple[int, ...]], Tensor], kind: str
) -> None:
    forward = serve(kind, device="cuda").executor.runner.forward
    first, second = [7, 3, 11], [5, 9]
    forward(build_step_tensors([chunk(TOKEN_IDS, 0, 39, first), chunk(OTHER_IDS, 0, 13, second)], []))
    step = [chunk(TOKEN_IDS, 39, 40, first), chunk(OTHER_IDS, 13, 30, second)]
    logits = forward(build_step_tensors(step, range(18))).cpu()
    expected = torch.cat((plain_logits(kind, TOKEN_IDS)[39:], plain_logits(kind, OTHER_IDS)[13:]))
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_steps_sample_and_report(serve: Callable[..., Any], dtype: str) -> None:
    executor = serve("llama", dtype=dtype, device="cuda").executor
    spec = SampleSpec(SamplingParams(temperature=0.8, top_p=0.9, logprobs=2), seed=3, index=0)
    step = StepInput(1, [SequenceChunk(SequenceId(0), TOKEN_IDS, 0, [BlockId(b) for b in (1, 2, 3)], spec)])
    first, again = (executor.submit(step).result().chunks[0] for _ in range(2))
    assert first.error is None
    assert (first.token_id, first.logprobs) == (again.token_id, again.logprobs)
    assert (executor.info.device, executor.info.dtype, executor.info.kernels) == ("cuda:0", dtype, "reference")
