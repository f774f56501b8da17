"""What an engine is to load and on what: plain values, importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from distllm.engine.distributed.launcher.launch import LaunchedRanks
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.quantization.by_layer import LayerRun
from distllm.engine.quantization.config import QuantizationConfig

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
KvCacheDtypeName = Literal["auto", "int8", "fp8"]
AttentionBackendName = Literal["auto", "paged_cpu", "reference"]
OffloadName = Literal["none", "cpu", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How to load one checkpoint.

    `model` is a local checkpoint directory. `max_model_len` None takes what the model supports.
    `kv_cache_bytes` None sizes the KV pool from measured free memory; `num_blocks` overrides both.
    `max_num_seqs` and `max_num_batched_tokens` are the most a step carries; the pool and the memory kept free for
    activations follow from them. `num_threads` None gives the CPU kernels one thread a core.
    `numerics` None measures which order of sums is faster here; an engine that takes over another's sequences is
    given that one's ExecutorInfo.numerics, so that its bits go on.
    `offload` says where layers wait that do not fit on the device: in the host's memory ("cpu") or in a file in
    `offload_dir` ("disk"; None: the system's folder for that). `weights_bytes` is what weights on the device may
    take, with the buffers through which layers stream; None gives them what is free beside the KV pool.
    `tensor_parallel_size` ranks share the model; None takes as many as there are CUDA devices, or one. A rank that
    keeps the others waiting for `rank_timeout_s` counts as hung. Every `rank_check_steps` steps the ranks compare
    what they computed; 0 never. `launched` ranks are those that a launcher has started; None has them started here.
    `quantization` quantizes the weights while they load; None takes them as they are stored. In its place,
    `layer_quantization` says so of the layers of a stage, where they differ.
    `injection_policy` names, by the class of a layer, the linear layers whose partial outputs are added up over
    ranks ("parent.child"), in place of the model's own sharding plan.
    With a `cluster` the model runs on its peers, and this engine coordinates them.
    `kv_cache_dtype` auto keeps KV in the type of the weights; int8 and fp8 add a scale for each token and head.
    """

    model: str
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    num_blocks: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    num_threads: int | None = None
    attention_backend: AttentionBackendName = "auto"
    numerics: str | None = None
    offload: OffloadName = "none"
    offload_dir: str | None = None
    weights_bytes: int | None = None
    tensor_parallel_size: int | None = 1
    rank_timeout_s: float = 1.5
    rank_check_steps: int = 0
    quantization: QuantizationConfig | None = None
    layer_quantization: tuple[LayerRun, ...] = ()
    injection_policy: Mapping[str, tuple[str, ...]] | None = None
    kv_cache_dtype: KvCacheDtypeName = "auto"
    launched: LaunchedRanks | None = None
    cluster: ClusterSettings | None = None
