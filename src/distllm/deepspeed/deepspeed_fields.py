"""What each field of DeepSpeed's inference config means here: data, checked against DeepSpeed's own in the tests.

A field is a parameter of DeepSpeedConfig, or another name for one, or means nothing here and does no harm, or is
refused with the reason.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refused:
    """Values other than `neutral` are refused; `reason` says why, and what goes instead."""

    reason: str
    neutral: Collection[object] = ()

    def accepts(self, value: object) -> bool:
        return value is None or value == {} or any(value is same or value == same for same in self.neutral)


@dataclass(frozen=True, slots=True)
class Harmless:
    """Any value is accepted and nothing comes of it; `reason` is logged."""

    reason: str


RENAMED: Mapping[str, str] = {
    "mp_size": "tensor_parallel_size",
    "tp_size": "tensor_parallel_size",
    "kernel_inject": "replace_with_kernel_inject",
    "checkpoint": "checkpoint_dict",
    "injection_dict": "injection_policy",
    "max_tokens": "max_out_tokens",
    "min_tokens": "min_out_tokens",
}
"""Other names of parameters, most of them DeepSpeed's own."""

NESTED: Mapping[str, Mapping[str, str]] = {
    "tensor_parallel": {"tp_size": "tensor_parallel_size"},
    "tp": {"tp_size": "tensor_parallel_size"},
    "checkpoint_config": {"checkpoint_dir": "checkpoint_dict", "base_dir": "base_dir"},
    "ckpt_config": {"checkpoint_dir": "checkpoint_dict", "base_dir": "base_dir"},
}
"""Fields that hold a dict, and the parameters that its entries are."""

_GROUPS = "ranks are started and joined by the engine; leave it out"
_EXPERTS = "experts are divided like other weights, by tensor_parallel_size"

UNUSED: Mapping[str, Refused | Harmless] = {
    "args": Refused("is not read; give its entries as fields of their own"),
    "config": Refused("is not read; give its entries as fields of their own"),
    "enabled": Refused("cannot switch it off; set tensor_parallel_size=1", (True,)),
    "ep_group": Refused(_GROUPS),
    "ep_mp_group": Refused(_GROUPS),
    "ep_size": Refused(_EXPERTS, (1,)),
    "expert_group": Refused(_GROUPS),
    "expert_mp_group": Refused(_GROUPS),
    "injection_policy_tuple": Refused("is DeepSpeed's own; give injection_policy={Class: [names]}"),
    "keep_module_on_host": Harmless("weights are always quantized on the host, before they move to a device"),
    "moe": Harmless(_EXPERTS),
    "moe_experts": Harmless("the number of experts is the model's own"),
    "moe_type": Refused("residual experts are no kind that is served; leave it out", ("standard",)),
    "mpu": Refused(_GROUPS),
    "replace_method": Harmless("DeepSpeed itself no longer reads it"),
    "return_tuple": Harmless("what comes back is text"),
    "save_mp_checkpoint_path": Refused("is not written here: each rank reads its part of any checkpoint by itself"),
    "set_empty_params": Harmless("a model on the meta device is taken as it is, with checkpoint_dict"),
    "tm": Refused("only causal decoders are served, whose mask is triangular", (True,)),
    "tp_grain_size": Harmless("parts are multiples of the kernels' panels"),
    "tp_group": Refused(_GROUPS),
    "training_mp_size": Refused("checkpoints of several training ranks must be merged first", (1,)),
    "transposed_mode": Refused("weights are read in the layout of transformers", (False,)),
    "triangular_masking": Refused("only causal decoders are served, whose mask is triangular", (True,)),
    "triton_autotune": Refused("kernels come tuned; leave it out", (False,)),
    "use_triton": Refused("kernels are chosen for the device; leave it out", (False,)),
    "zero": Refused(
        "divides the state of training; tensor_parallel_size divides weights, quantization shrinks them"
    ),
}
"""The rest of DeepSpeed's fields, and entries of its nested configs."""
