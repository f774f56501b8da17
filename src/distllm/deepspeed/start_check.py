"""Finds before an engine starts what it would refuse: a length, ranks, a policy or groups that do not go."""

from pathlib import Path

from distllm.deepspeed.refusal import InvalidOption
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.context_length import supported_length
from distllm.engine.conversion.rank_checkpoint import open_for_rank
from distllm.engine.distributed.division import CannotDivide
from distllm.engine.quantization.config import QuantizationError


def check_start(path: Path, config: EngineConfig) -> None:
    """Raises InvalidOption. Reads headers, and builds the model without weights where options need it."""
    supported = supported_length(open_for_rank(path).text_config)
    asked = config.max_model_len
    if asked is not None and supported is not None and asked > supported:
        raise InvalidOption("max_out_tokens", f"{asked} is beyond the {supported} tokens that the model supports")
    size = config.tensor_parallel_size or 1
    if size > 1 or config.injection_policy is not None or config.quantization is not None:
        for rank in sorted({0, size - 1}):  # the largest part and the smallest
            _check_rank(path, config, rank, size)


def _check_rank(path: Path, config: EngineConfig, rank: int, size: int) -> None:
    from distllm.engine.distributed.user_policy import InvalidPolicy

    try:
        _build(path, config, rank, size)
    except InvalidPolicy as error:
        raise InvalidOption("injection_policy", str(error).removeprefix("injection_policy: ")) from None
    except CannotDivide as error:
        raise InvalidOption("tensor_parallel_size", f"cannot be {size}: {error}") from None
    except QuantizationError as error:
        raise InvalidOption("quantization_config", f"cannot be: {error}") from None
    except CheckpointError:  # the engine's own words tell what is wrong with it
        return


def _build(path: Path, config: EngineConfig, rank: int, size: int) -> None:
    """As the rank will, up to its weights."""
    import torch

    from distllm.engine.distributed.sharding import plan_sharding
    from distllm.engine.distributed.shrinking import shrink
    from distllm.engine.distributed.unit import inner_unit
    from distllm.engine.distributed.user_policy import policy_blocks
    from distllm.engine.injection.quantizing import choose_schemes
    from distllm.engine.loading import build_on_meta, load_config

    checkpoint = open_for_rank(path, rank, size)
    model = build_on_meta(checkpoint, load_config(checkpoint), torch.bfloat16)
    blocks = None if config.injection_policy is None else policy_blocks(model, config.injection_policy)
    if size > 1:
        shrink(model, plan_sharding(model, rank, size, blocks, inner_unit(checkpoint, config.quantization)))
    if config.quantization is not None and checkpoint.quantization is None:
        choose_schemes(model, config.quantization)
