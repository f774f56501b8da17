"""Ranks whose layers stream compute the very bits of ranks that hold them, each from a file of its own."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distllm.engine.batch import build_step_tensors
from distllm.engine.config import EngineConfig
from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.distributed.pool_agreement import AgreedPool, agree_on_pool
from distllm.engine.offload.start import Settled
from distllm.engine.quantization.config import QuantizationConfig
from distllm.engine.served_model import ServedModel, prepare_model
from tests.engine.distributed.thread_ranks import ThreadGroup, loading_in_turn, on_every_rank
from tests.engine.test_forward import NUM_BLOCKS, Part, make_stories

FREE_BYTES = 1 << 30


@pytest.fixture(autouse=True)
def load_in_turn() -> Iterator[None]:
    with loading_in_turn():
        yield


@pytest.fixture
def make_config(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., EngineConfig]:
    def make(kind: str, **changes: Any) -> EngineConfig:
        plain = EngineConfig(
            model=str(checkpoint(kind)), device="cpu", max_model_len=64, num_blocks=NUM_BLOCKS, num_threads=1
        )
        return replace(plain, offload_dir=str(tmp_path), **changes)

    return make


def serve(config: EngineConfig, size: int) -> list[tuple[ServedModel, AgreedPool]]:
    def prepare(group: ThreadGroup) -> tuple[ServedModel, AgreedPool]:
        served = prepare_model(config, lambda *_: None, group)
        return served, agree_on_pool(config, served, group, FREE_BYTES)

    return on_every_rank(size, prepare)


def logits(ranks: list[tuple[ServedModel, AgreedPool]]) -> Tensor:
    """Of every token of a sequence, computed in two steps over the same pool."""
    (story,) = make_stories(3, [40])
    forwards = [served.forward_over(NUM_BLOCKS) for served, _ in ranks]
    steps = [
        build_step_tensors([Part(story, *span).chunk()], range(span[1] - span[0])) for span in ((0, 39), (39, 40))
    ]

    def run(group: ThreadGroup) -> Tensor:
        return torch.cat([forwards[group.rank](step) for step in steps])

    return torch.cat(on_every_rank(len(ranks), run), dim=-1)


def streamed(
    config: EngineConfig, size: int, share: float = 0.9
) -> tuple[list[tuple[ServedModel, AgreedPool]], int]:
    """Ranks that may hold `share` of their weights, and the bytes of all weights."""
    weight_bytes = sum(served.weight_bytes for served, _ in serve(config, size))
    limited = replace(config, offload="disk", weights_bytes=int(share * weight_bytes))
    return serve(limited, size), weight_bytes


@pytest.mark.parametrize(
    ("kind", "size", "changes"),
    [
        ("llama", 2, {"dtype": "bfloat16"}),
        ("llama-odd", 3, {}),
        ("gpt2", 2, {"attention_backend": "reference"}),
        ("gpt_oss", 2, {"attention_backend": "reference"}),
        ("mixtral", 2, {"quantization": QuantizationConfig(bits=4, group_size=32)}),
    ],
)
def test_ranks_stream_their_own_parts_and_compute_the_same_bits(
    make_config: Callable[..., EngineConfig], kind: str, size: int, changes: dict[str, Any]
) -> None:
    config = make_config(kind, **changes)
    expected = logits(serve(config, size))
    ranks, weight_bytes = streamed(config, size, share=0.97)
    told = {served.offloaded.streamed_bytes for served, _ in ranks if served.offloaded is not None}
    assert len(told) == 1, "every rank knows the bytes of all"
    assert 0.2 * weight_bytes < told.pop() < 2 * weight_bytes  # in whole pages
    assert torch.equal(logits(ranks), expected)


def test_ranks_of_a_converted_checkpoint_stream_as_well(
    make_config: Callable[..., EngineConfig], tmp_path: Path
) -> None:
    plain = make_config("qwen3", dtype="bfloat16")
    converted = convert_checkpoint_to_deepspeed(plain.model, tmp_path / "two", 2).parent
    ranks, _ = streamed(replace(plain, model=str(converted)), 2)
    assert torch.equal(logits(ranks), logits(serve(plain, 2)))


def test_ranks_share_the_hosts_memory(
    make_config: Callable[..., EngineConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What all layers would fit into is divided by the ranks before any of them takes its layers back."""
    config = replace(make_config("llama", offload="disk", max_num_batched_tokens=16), num_blocks=None)
    free = {"bytes": 1 << 30}
    monkeypatch.setattr("distllm.engine.offload.start.measure_free_bytes", lambda _: free["bytes"])
    assert all(served.offloaded == Settled(0, None) for served, _ in serve(config, 2))
    need = serve(config, 2)[0][0].pool_need(config)
    free["bytes"] = 2 * int((need.activation_bytes + 4 * need.block_bytes + 170_000) / 0.9)
    with caplog.at_level(logging.INFO, "distllm.engine"):
        ranks = serve(config, 2)
    assert caplog.text.count("0 of 3 layers stay in memory; 3 stream from disk") == 2
    pools = {pool.num_blocks for _, pool in ranks}
    assert pools == {ranks[0][0].offloaded.num_blocks}  # type: ignore[union-attr]
