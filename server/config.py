"""Settings of the server: which there are, what each may be.

Every setting is one field of one section. Its flag is `--field-name`, its variable DISTLLM_FIELD_NAME, its place in
the file `section: {field_name: ...}`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from distllm.engine.quantization.config import QuantizationConfig, QuantizationError

QUANTIZATION_OPTIONS = ("quantization", "group_size", "symmetric", "dynamic_activations", "mlp_extra_grouping")
"""Settings of the model that say how its weights are quantized; the first says whether they are."""
OFFLOAD_OPTIONS = ("offload_dir", "weights_memory")
"""Settings of the engine that mean something only where layers are offloaded."""


class InvalidSettings(ValueError):
    """A setting is unknown or its value unusable; the message names it, where it came from and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServerSection(Section):
    """HTTP: where to listen, who may call, how much is taken."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    api_key: tuple[str, ...] = Field((), description="bearer token that clients must send; may be repeated")
    served_model_name: tuple[str, ...] = Field((), description="model name in the API; may be repeated")
    max_body_mb: float = Field(32.0, gt=0, description="largest request body, in MiB")
    keep_alive_s: float = Field(15.0, gt=0, description="seconds of silence before a stream gets a comment")
    drain_s: float = Field(60.0, ge=0, description="seconds that live requests get to end after SIGTERM")
    stall_s: float = Field(120.0, gt=0, description="seconds without a finished step before /health says so")
    resumable_streams: Literal["asked", "all"] = Field(
        "asked", description="streams that may be resumed: those sent with x-resumable: true, or all"
    )
    resume_grace_s: float = Field(30.0, ge=0, description="seconds that a resumable stream waits for its client")
    max_kept_streams: int = Field(256, ge=0, description="most resumable streams at once")
    kept_streams_mb: float = Field(64.0, gt=0, description="MiB for the events of resumable streams")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level to log")

    @field_validator("host", "served_model_name", "api_key")
    @classmethod
    def _is_filled(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not all(text.strip() for text in ([value] if isinstance(value, str) else value)):
            raise ValueError("must not be empty")
        return value

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise ValueError("must be of printable ASCII characters other than spaces")
        return keys


class ModelSection(Section):
    """Which checkpoint, and how it is loaded."""

    model: str | None = Field(None, description="checkpoint directory or hub name; none: the embedded model")
    revision: str | None = Field(None, description="branch, tag or commit of a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of weights and KV; auto keeps the checkpoint's"
    )
    max_model_len: int | None = Field(None, ge=1, description="longest sequence; none: what the model supports")
    chat_template: Path | None = Field(None, description="file with a chat template that replaces the model's")
    quantization: Literal["int8", "int4"] | None = Field(
        None, description="int8 or int4: quantize weights while they load; none: as they are stored"
    )
    group_size: int | None = Field(
        None, description="weights that share a scale: 32, 64 or 128; none: 32 for int4, a whole row for int8"
    )
    symmetric: bool = Field(True, description="quantize without zero points")
    dynamic_activations: bool = Field(False, description="round the inputs of int8 weights to eight bits as well")
    mlp_extra_grouping: bool = Field(False, description="halve the groups in MLPs")

    @property
    def quantization_config(self) -> QuantizationConfig | None:
        """Raises QuantizationError."""
        if self.quantization is not None:
            return QuantizationConfig.named(
                self.quantization,
                group_size=self.group_size,
                symmetric=self.symmetric,
                dynamic_activations=self.dynamic_activations,
                mlp_extra_grouping=self.mlp_extra_grouping,
            )
        for name in QUANTIZATION_OPTIONS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise QuantizationError(f"{name} says how to quantize: give --quantization int8 or int4 as well")
        return None


class SchedulerSection(Section):
    """How many requests run at once and how many wait."""

    max_num_seqs: int = Field(64, ge=1, description="most sequences in one step")
    max_num_batched_tokens: int = Field(512, ge=1, description="token budget of one step")
    max_waiting: int = Field(512, ge=0, description="most sequences that wait; beyond that clients get 429")
    prefix_caching: bool = Field(True, description="reuse the KV of prompts that begin alike")


class EngineSection(Section):
    """Device, threads and memory."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    num_threads: int | None = Field(None, ge=1, description="threads of the CPU kernels; none: one a core")
    kv_cache_memory: float | None = Field(
        None, gt=0, description="GiB for the KV cache; none: from measured free memory"
    )
    kv_cache_dtype: Literal["auto", "int8", "fp8"] = Field(
        "auto", description="type of the KV cache; int8 and fp8 halve it"
    )
    offload: Literal["none", "cpu", "disk"] = Field(
        "none", description="where layers wait that do not fit on the device: host memory (with cuda) or a file"
    )
    offload_dir: Path | None = Field(None, description="folder on a disk for offloaded layers; none: /var/tmp")
    weights_memory: float | None = Field(
        None,
        gt=0,
        description="GiB on the device for weights when offloading; none: what is free beside the KV cache",
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="ranks that share the model; auto: one a CUDA device"
    )
    rank_timeout_s: float = Field(1.5, gt=0, description="seconds a rank may keep the others waiting")
    rank_check_steps: int = Field(
        0, ge=0, description="for debugging: compare the ranks' activations every so many steps; 0: never"
    )
    step_timeout_s: float = Field(600.0, gt=0, description="seconds in one step before a hung engine is replaced")
    attention_backend: Literal["auto", "paged_cpu", "reference"] = Field(
        "auto", description="kernels to use; reference: plain torch, slow, for comparison"
    )


class ClusterSection(Section):
    """Serving over other machines."""

    coordinator: Path | None = Field(
        None, description="cluster.yaml: run the model on peers that join this machine"
    )
    state: Path | None = Field(
        None,
        description="folder from which a restarted server goes on: resumable streams, and the cluster's authority "
        "and tokens, which are in ~/.local/state/distllm/cluster otherwise",
    )
    allow_plaintext: bool = Field(False, description="accept network.encryption: false beyond this machine")
    mode: Literal["single", "hybrid"] = Field(
        "single", description="hybrid: run the model here and on the peers, and choose for each request"
    )


class RoutingSection(Section):
    """What --mode hybrid chooses by."""

    target_ttft_s: float | None = Field(
        1.0, gt=0, description="seconds to the first token that requests should not exceed"
    )
    target_tpot_s: float | None = Field(0.1, gt=0, description="seconds a token after it, the same")
    patience_s: float = Field(
        5.0, ge=0, description="seconds that running requests wait for peers before they go on here"
    )


class Settings(BaseSettings):
    """All settings. Build with `config_sources.load_settings`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    server: ServerSection = ServerSection()
    model: ModelSection = ModelSection()
    scheduler: SchedulerSection = SchedulerSection()
    engine: EngineSection = EngineSection()
    cluster: ClusterSection = ClusterSection()
    routing: RoutingSection = RoutingSection()


def sections() -> dict[str, type[Section]]:
    """Section name to its model, in the order in which help shows them."""
    return {
        "server": ServerSection,
        "model": ModelSection,
        "scheduler": SchedulerSection,
        "engine": EngineSection,
        "cluster": ClusterSection,
        "routing": RoutingSection,
    }


def fields() -> dict[str, tuple[str, FieldInfo]]:
    """Field name to its section's name and the field; names are unique over all sections."""
    return {
        name: (section, field)
        for section, model in sections().items()
        for name, field in model.model_fields.items()
    }


def is_repeatable(field: FieldInfo) -> bool:
    """Whether a setting holds several values: a repeated flag, a comma-separated variable, a YAML list."""
    return field.annotation == tuple[str, ...]
