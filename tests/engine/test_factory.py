"""What an engine says about itself, how it reports progress, and why it refuses."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.executor.local import LocalExecutor
from distllm.engine.factory import build_executor
from distllm.engine.forward import ModelForward
from distllm.engine.injection.fused import FusedRMSNorm
from distllm.engine.kernels.library import KernelsUnavailable
from distllm.engine.kernels.ops import CpuKernels, load_kernels
from distllm.engine.pool_size import OutOfMemory

Checkpoints = Callable[[str], Path]


@pytest.fixture
def config(checkpoint: Checkpoints) -> EngineConfig:
    return EngineConfig(model=str(checkpoint("llama")), device="cpu", num_threads=1)


def build(config: EngineConfig) -> LocalExecutor:
    executor = build_executor(config, lambda _activity, _fraction: None)
    assert isinstance(executor, LocalExecutor)
    return executor


def test_the_executor_describes_what_it_loaded(config: EngineConfig) -> None:
    info = build(replace(config, dtype="bfloat16", max_num_seqs=3)).info
    assert (info.model_type, info.dtype, info.device) == ("llama", "bfloat16", "cpu")
    assert (info.vocab_size, info.max_model_len, info.block_size) == (131, 128, 16)
    assert info.num_blocks == 3 * 8
    assert info.kv_block_bytes == 16 * 3 * 2 * (16 + 16) * 2
    assert info.weight_bytes >= 2 * 100_000
    assert info.load_s > 0


def test_progress_only_rises_and_ends_complete(config: EngineConfig) -> None:
    seen: list[tuple[str, float]] = []
    build_executor(config, lambda activity, fraction: seen.append((activity, fraction)))
    packing = [fraction for activity, fraction in seen if activity == "packing the weights"]
    assert len(packing) > 5
    assert packing == sorted(packing)
    assert packing[-1] == 1.0
    assert seen[0] == ("reading the checkpoint", 0.0)


@pytest.mark.parametrize(("level", "dtype"), [("avx2", "bfloat16"), ("portable", "float32"), (None, "float32")])
def test_float16_checkpoints_are_served_in_what_is_fast_on_the_cpu(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str | None, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("distllm.engine.dtypes.cpu_level", lambda: level)
    AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float16).save_pretrained(tmp_path)
    assert build(replace(config, model=str(tmp_path))).info.dtype == dtype


def test_float16_is_served_by_plain_torch_when_asked_for(config: EngineConfig) -> None:
    info = build(replace(config, dtype="float16")).info
    assert (info.dtype, info.kernels) == ("float16", "reference")


def test_without_kernels_the_reference_path_serves_and_says_so(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unavailable = KernelsUnavailable("no compiler")
    monkeypatch.setattr("distllm.engine.compute.load_kernels", lambda num_threads: unavailable)
    with caplog.at_level(logging.WARNING, "distllm.engine"):
        info = build(config).info
    assert info.kernels == "reference"
    assert caplog.messages == ["serving with plain torch, which is slow: no compiler"]
    with pytest.raises(ValueError, match="--attention-backend paged_cpu: no compiler"):
        build(replace(config, attention_backend="paged_cpu"))


@pytest.mark.parametrize("variant", ["fma", "dot"])
def test_an_engine_that_takes_over_computes_as_the_one_before(config: EngineConfig, variant: str) -> None:
    kernels = load_kernels(num_threads=1)
    assert isinstance(kernels, CpuKernels)
    if variant == "fma" or kernels.has_bf16_dot:
        wanted = f"{kernels.numerics.rpartition('-')[0]}-{variant}"
        assert build(replace(config, dtype="bfloat16", numerics=wanted)).info.numerics == wanted


def test_numerics_that_this_machine_lacks_are_warned_about(
    config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "distllm.engine"):
        build(replace(config, numerics="other-cpu"))
    assert "tokens may differ by rounding" in caplog.text


def test_one_block_is_enough_for_short_sequences(config: EngineConfig) -> None:
    assert build(replace(config, max_model_len=16, max_num_seqs=1)).info.num_blocks == 1


def test_a_model_with_a_layer_replaced_wrongly_is_refused(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distllm.engine.injection.fused.FusedRMSNorm.forward", lambda self, x: x * 0.5)
    with pytest.raises(CheckpointError, match="in paged steps its logits differ"):
        build(config)


def test_a_layer_that_looks_at_the_batch_is_warned_about(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = FusedRMSNorm.forward
    monkeypatch.setattr(FusedRMSNorm, "forward", lambda self, x: forward(self, x) * (1 + 1e-6 * x.shape[1]))
    with caplog.at_level(logging.WARNING, "distllm.engine"):
        build(config)
    assert "tokens may differ by rounding with what else is in a batch" in caplog.text


@pytest.mark.parametrize(("kind", "is_said"), [("phi3-longrope", True), ("phi3", False)])
def test_a_scaling_that_depends_on_the_length_is_said_to_be_fixed(
    checkpoint: Checkpoints, config: EngineConfig, caplog: pytest.LogCaptureFixture, kind: str, is_said: bool
) -> None:
    with caplog.at_level(logging.INFO, "distllm.engine"):
        build(replace(config, model=str(checkpoint(kind))))
    assert ("is fixed to that of 128 tokens" in caplog.text) is is_said


def test_a_pool_that_is_too_small_is_refused_by_the_flags_name(config: EngineConfig) -> None:
    with pytest.raises(OutOfMemory, match=r"--max-model-len .* --kv-cache-memory"):
        build(replace(config, kv_cache_bytes=1000))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_cuda_that_is_not_there_is_refused(config: EngineConfig) -> None:
    with pytest.raises(ValueError, match="--device cuda: torch finds no CUDA device"):
        build(replace(config, device="cuda"))


def test_the_weights_are_in_memory_once(config: EngineConfig, tmp_path: Path) -> None:
    """After packing, nothing refers to the checkpoint's files and no dense matrix is left."""
    config = replace(config, model=str(shutil.copytree(config.model, tmp_path / "copy")))
    forward = build(config).runner.forward
    assert isinstance(forward, ModelForward)
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if config.model in line]
    assert all(parameter.dim() == 1 for parameter in forward.model.parameters())


def test_closing_gives_the_memory_back(config: EngineConfig) -> None:
    executor = build(config)
    executor.close()
    with pytest.raises(AssertionError, match="closed"):
        _ = executor.runner
