"""`distllm quantize`: writes a quantized checkpoint."""

import sys
from pathlib import Path

from distllm.engine.byte_size import byte_size
from distllm.engine.child_program import Refusal
from distllm.engine.hub import ModelNotFound
from distllm.engine.quantizing_report import QuantizeRequest, run_quantizing
from distllm.server.config import InvalidSettings, Settings
from distllm.server.launch import find_checkpoint


def quantize(settings: Settings, out: Path) -> int:
    """Write the model that `settings` name, quantized, to `out`. Returns the exit status."""
    config = settings.model.quantization_config
    if config is None:
        raise InvalidSettings("give --quantization int8 or int4")
    try:
        path = find_checkpoint(settings)
    except ModelNotFound as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    result = run_quantizing(QuantizeRequest(str(path), str(out), config))
    if isinstance(result, Refusal):
        sys.stderr.write(f"distllm: {result.reason}\n")
        return 1
    before, after = result.before_bytes, result.after_bytes
    sys.stdout.write(
        f"{out}: {byte_size(after)} of {byte_size(before)} ({after / before:.0%}), {config.name}\n"
        f"serve it with `distllm serve {out}`\n"
    )
    return 0
