"""Starts the engine of a checkpoint as a DeepSpeedConfig says, or says what would fit where it does not."""

import re
from pathlib import Path
from typing import Any

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.memory_advice import Devices, OutOfMemory, refusal
from distllm.deepspeed.number_type import computed_dtype
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.start_check import check_start
from distllm.engine.config import EngineConfig
from distllm.engine.conversion.rank_checkpoint import open_for_rank
from distllm.engine.dtypes import DTYPE_BYTES, resolve_dtype
from distllm.engine.examination import examine_architecture
from distllm.engine.memory import measure_free_host_bytes
from distllm.engine.quantization.footprint import weight_bytes
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.launch import start_message
from distllm.server.llm import LLM, offline_settings

_FLAG = re.compile(r"(?<!\S)--([a-z][a-z-]*)")
_FIELDS = {"max-model-len": "max_out_tokens", "model": "model", "quantization": "quantization_config"}
"""The fields of flags that have another name."""


def start_llm(path: Path, config: DeepSpeedConfig) -> LLM:
    """The engine of the checkpoint in `path`, ready.

    Raises InvalidOption for what the model does not take, OutOfMemory, and what LLM raises.
    """
    options = _options(config)
    engine_config = start_message(offline_settings(None, options), path, config.injection_policy).engine
    check_start(path, engine_config)
    if _weights_exceed(path, engine_config) and (reason := _memory_refusal(path, engine_config)):
        raise OutOfMemory(reason)  # before the system kills what loads them
    try:
        llm = LLM(str(path), injection_policy=config.injection_policy, **options)
    except EngineUnavailable as error:
        if reason := _memory_refusal(path, engine_config):
            raise OutOfMemory(reason) from None
        raise EngineUnavailable(_in_our_names(error.reason)) from None
    if llm.info.max_model_len < config.min_out_tokens:
        llm.close()
        raise InvalidOption("min_out_tokens", f"cannot be had: the context is of {llm.info.max_model_len} tokens")
    return llm


def _in_our_names(reason: str) -> str:
    """What the engine says, with the names of fields in place of those of flags."""
    return _FLAG.sub(lambda flag: _FIELDS.get(flag[1], flag[1].replace("-", "_")), reason)


def _options(config: DeepSpeedConfig) -> dict[str, Any]:
    """`config` under the names of the server's settings."""
    options: dict[str, Any] = {
        "dtype": computed_dtype(config.dtype, "cuda" if _cuda_devices() else "cpu"),
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_model_len": config.max_out_tokens,
        "attention_backend": "auto" if config.replace_with_kernel_inject else "reference",
    }
    quantization = config.quantization
    if quantization is not None:
        options |= {
            "quantization": f"int{quantization.bits}",
            "group_size": quantization.group_size,
            "symmetric": quantization.symmetric,
            "dynamic_activations": quantization.dynamic_activations,
            "mlp_extra_grouping": quantization.mlp_extra_grouping,
        }
    return options


def _cuda_devices() -> list[int]:
    """Free bytes of each CUDA device."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [int(torch.cuda.mem_get_info(device)[0]) for device in range(count)]


def _devices() -> Devices:
    cuda = _cuda_devices()
    return Devices(len(cuda), min(cuda)) if cuda else Devices(1, measure_free_host_bytes())


def _weights_exceed(path: Path, config: EngineConfig) -> bool:
    """Whether the weights alone take more than there is, told from the headers."""
    checkpoint, devices = open_for_rank(path), _devices()
    dtype = resolve_dtype(config.dtype, checkpoint, "cpu")
    num_devices = min(config.tensor_parallel_size or 1, devices.count)
    return weight_bytes(checkpoint, config.quantization, DTYPE_BYTES[dtype]) > devices.free_bytes * num_devices


def _memory_refusal(path: Path, config: EngineConfig) -> str | None:
    """Why the checkpoint does not fit, and what would; None where it does, or where it is wrong in another way."""
    checkpoint = open_for_rank(path)
    try:
        return refusal(checkpoint, examine_architecture(checkpoint, config), config, _devices())
    except Exception:  # the engine's own reason is the one to tell
        return None
