"""Settings of a cluster, cluster.yaml: where its coordinator listens, and how it and its peers talk.

Every setting has a default, so that an empty file will do. They come from the file alone.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distllm.engine.pipeline.patience import Patience
from distllm.engine.pipeline.placement.plan import Objective
from distllm.engine.pipeline.security.host import is_loopback
from distllm.engine.pipeline.settings import ClusterSettings
from distllm.engine.pipeline.wire.codec_names import Compression
from distllm.server.config import InvalidSettings, Section
from distllm.server.config_file import read_config_file
from distllm.server.setting_words import describe


class ClusterSection(Section):
    """Values must have the type that YAML gives them: `port: "5555"` is a text."""

    model_config = ConfigDict(strict=True)


class CoordinatorSection(ClusterSection):
    """Where peers and people find the coordinator, and how many peers it takes."""

    host: str = Field("0.0.0.0", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(5555, ge=0, le=65535, description="port for peers; 0 lets the system choose")
    dashboard_port: int = Field(8080, ge=0, le=65535, description="port of the page of peers; 0 lets it choose")
    dashboard_host: str | None = Field(
        None, min_length=1, description="address of that page, which asks for no key; by default loopback's"
    )
    num_stages: int | None = Field(
        None, ge=1, le=1024, description="peers that share the model's layers (default: what measures best)"
    )
    objective: Objective = Field(
        "throughput", description="what the layers' placement is best for: throughput of many streams, or latency"
    )
    expected_streams: int = Field(8, ge=1, le=65536, description="streams at once that throughput is planned for")
    expected_prompt_tokens: int = Field(512, ge=1, description="tokens of a usual prompt, for the plan")
    expected_output_tokens: int = Field(256, ge=1, description="tokens of a usual answer, for the plan")
    replan_gain: float = Field(
        0.2, ge=0, le=1e6, description="how much more, as a part, a plan must give to replace the one that serves"
    )
    min_workers: int = Field(1, ge=1, le=1024, description="peers to wait for before the model is placed")
    max_workers: int = Field(16, ge=1, le=1024, description="most peers that may be joined at once")

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine can reach it."""
        return is_loopback(self.host)

    @property
    def page_host(self) -> str:
        """Where the page of peers is."""
        return self.dashboard_host or (self.host if self.is_loopback else "127.0.0.1")


class NetworkSection(ClusterSection):
    """How the coordinator and its peers talk."""

    timeout_seconds: float = Field(30.0, gt=0, le=3600, description="seconds until an answer is given up on")
    retry_attempts: int = Field(3, ge=0, le=100, description="times that a call is tried again")
    heartbeat_interval_seconds: float = Field(0.25, gt=0, le=60, description="seconds between a peer's beats")
    max_message_size_mb: int = Field(64, ge=1, le=2048, description="largest message, in MiB")
    compression: Compression = Field(
        "none", description="how activations travel; fp8 and int8 lose precision, auto measures which is fastest"
    )
    allow_lossy: bool = Field(False, description="let auto choose what loses precision, as all but none does")
    encryption: bool = Field(True, description="speak TLS with certificates on both ends")
    protocol: Literal["tcp"] = Field("tcp", description="tcp: HTTP/2 over TCP")

    @property
    def chosen_compression(self) -> Compression:
        """`auto` has nothing to choose from where nothing may be lost."""
        return "none" if self.compression == "auto" and not self.allow_lossy else self.compression


class ClusterConfig(BaseModel):
    """All settings of a cluster. Build with `load_cluster_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    coordinator: CoordinatorSection = CoordinatorSection()
    network: NetworkSection = NetworkSection()


_SECTIONS: dict[str, type[Section]] = {"coordinator": CoordinatorSection, "network": NetworkSection}


def load_cluster_config(path: Path, allow_plaintext: bool = False) -> ClusterConfig:
    """Read cluster.yaml. Raises InvalidSettings, which names the file, the setting and what it must be.

    Without encryption, only a coordinator on a loopback address is accepted, unless `allow_plaintext`.
    """
    values = read_config_file(path, _SECTIONS)
    try:
        config = ClusterConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidSettings(f"config file {path}: {describe(error)}") from None
    if fault := _fault(config, allow_plaintext):
        raise InvalidSettings(f"config file {path}: setting {fault}")
    return config


def cluster_settings(config: ClusterConfig, state_dir: Path) -> ClusterSettings:
    """What the engine must know."""
    return ClusterSettings(
        host=config.coordinator.host,
        port=config.coordinator.port,
        state_dir=str(state_dir.absolute()),
        num_stages=config.coordinator.num_stages,
        objective=config.coordinator.objective,
        expected_streams=config.coordinator.expected_streams,
        expected_prompt_tokens=config.coordinator.expected_prompt_tokens,
        expected_output_tokens=config.coordinator.expected_output_tokens,
        replan_gain=config.coordinator.replan_gain,
        min_peers=config.coordinator.min_workers,
        max_peers=config.coordinator.max_workers,
        beat_s=config.network.heartbeat_interval_seconds,
        patience=Patience(timeout_s=config.network.timeout_seconds, retry_attempts=config.network.retry_attempts),
        max_message_bytes=config.network.max_message_size_mb << 20,
        compression=config.network.chosen_compression,
        is_encrypted=config.network.encryption,
    )


def _fault(config: ClusterConfig, allow_plaintext: bool) -> str | None:
    """Why settings that are right each for itself do not go together."""
    coordinator, network = config.coordinator, config.network
    if coordinator.port == coordinator.dashboard_port != 0:
        return f"coordinator.dashboard_port: must be another than port, {coordinator.port}"
    needed = max(coordinator.min_workers, coordinator.num_stages or 1)
    if needed > coordinator.max_workers:
        return f"coordinator.max_workers: must be at least {needed}, as many peers are needed to begin"
    if network.heartbeat_interval_seconds >= network.timeout_seconds:
        return (
            f"network.heartbeat_interval_seconds: must be below timeout_seconds, {network.timeout_seconds:g}, "
            f"not {network.heartbeat_interval_seconds:g}"
        )
    if not (network.encryption or coordinator.is_loopback or allow_plaintext):
        return (
            f"network.encryption: must be true where coordinator.host is {coordinator.host}: anyone on the way "
            "could read and change prompts and answers; set coordinator.host to 127.0.0.1, or insist with "
            "--allow-plaintext"
        )
    return None
