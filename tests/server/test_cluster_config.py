"""cluster.yaml: defaults that work, and errors that name the file, the setting and what it must be."""

from pathlib import Path

import pytest

from distllm.server.cluster_config import (
    ClusterConfig,
    NetworkSection,
    cluster_settings,
    load_cluster_config,
)
from distllm.server.config import InvalidSettings


def yaml_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["", "coordinator:\nnetwork: {}", "# nothing"])
def test_a_file_that_says_nothing_means_the_defaults(tmp_path: Path, text: str) -> None:
    config = load_cluster_config(yaml_file(tmp_path, text))
    assert config == ClusterConfig()
    assert (config.coordinator.port, config.coordinator.dashboard_port) == (5555, 8080)
    assert config.network.encryption
    assert config.network.compression == "none"


def test_every_setting_is_read(tmp_path: Path) -> None:
    text = """
coordinator:
  host: 10.0.0.1
  port: 6000
  dashboard_port: 6001
  dashboard_host: 10.0.0.2
  num_stages: 3
  objective: latency
  expected_streams: 16
  expected_prompt_tokens: 100
  expected_output_tokens: 50
  replan_gain: 0.5
  min_workers: 2
  max_workers: 4
network:
  timeout_seconds: 5
  retry_attempts: 0
  heartbeat_interval_seconds: 1.5
  max_message_size_mb: 128
  compression: auto
  allow_lossy: true
  encryption: true
  protocol: tcp
"""
    assert load_cluster_config(yaml_file(tmp_path, text)).model_dump() == {
        "coordinator": {
            "host": "10.0.0.1",
            "port": 6000,
            "dashboard_port": 6001,
            "dashboard_host": "10.0.0.2",
            "num_stages": 3,
            "objective": "latency",
            "expected_streams": 16,
            "expected_prompt_tokens": 100,
            "expected_output_tokens": 50,
            "replan_gain": 0.5,
            "min_workers": 2,
            "max_workers": 4,
        },
        "network": {
            "timeout_seconds": 5.0,
            "retry_attempts": 0,
            "heartbeat_interval_seconds": 1.5,
            "max_message_size_mb": 128,
            "compression": "auto",
            "allow_lossy": True,
            "encryption": True,
            "protocol": "tcp",
        },
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cordinator: {}", "section 'cordinator' is unknown; did you mean coordinator?"),
        ("network: {encription: true}", "network.encription is unknown; did you mean encryption?"),
        ("network: {zzz: 1}", "network.zzz is unknown; known are timeout_seconds, retry_attempts, "),
        ("server: {port: 1}", "section 'server' is unknown"),
        ("network: [tcp]", "section 'network' must hold settings"),
        ("tcp", "must hold sections: coordinator, network"),
        ("network: {encryption: true, encryption: false}", "encryption is given a second time in line 1"),
        ("network: !!python/object:os.system {}", "could not determine a constructor"),
        ("coordinator: {port: 70000}", "setting coordinator.port: must be at most 65535, not 70000"),
        ("coordinator: {port: '5555'}", "setting coordinator.port: must be a whole number, not '5555'"),
        ("coordinator: {port: true}", "setting coordinator.port: must be a whole number, not True"),
        ("coordinator: {host: ''}", "setting coordinator.host: must not be empty"),
        ("coordinator: {host: 5}", "setting coordinator.host: must be text; in YAML, write it in quotes, not 5"),
        ("coordinator: {max_workers: 0}", "setting coordinator.max_workers: must be at least 1, not 0"),
        ("coordinator: {port: 8080}", "setting coordinator.dashboard_port: must be another than port, 8080"),
        ("network: {timeout_seconds: 0}", "setting network.timeout_seconds: must be above 0"),
        ("network: {timeout_seconds: .inf}", "setting network.timeout_seconds: must be a finite number, not inf"),
        ("network: {timeout_seconds: .nan}", "setting network.timeout_seconds: must be a finite number, not nan"),
        ("network: {timeout_seconds: true}", "setting network.timeout_seconds: must be a number, not True"),
        ("network: {retry_attempts: 1.5}", "setting network.retry_attempts: must be a whole number, not 1.5"),
        (
            "network: {timeout_seconds: 2, heartbeat_interval_seconds: 2}",
            "setting network.heartbeat_interval_seconds: must be below timeout_seconds, 2, not 2",
        ),
        ("network: {max_message_size_mb: 0}", "setting network.max_message_size_mb: must be at least 1, not 0"),
        (
            "network: {compression: gzip}",
            "setting network.compression: must be 'none', 'fp8', 'int8' or 'auto', not 'gzip'",
        ),
        ("network: {encryption: 'no'}", "setting network.encryption: must be true or false, not 'no'"),
        ("network: {protocol: quic}", "setting network.protocol: must be 'tcp', not 'quic'"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = yaml_file(tmp_path, text)
    with pytest.raises(InvalidSettings) as caught:
        load_cluster_config(path)
    assert str(caught.value).startswith(f"config file {path}")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"none\.yaml cannot be read: No such file"):
        load_cluster_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "'::1'", "localhost"])
def test_plaintext_is_for_loopback(tmp_path: Path, host: str) -> None:
    text = f"coordinator: {{host: {host}}}\nnetwork: {{encryption: false}}"
    assert not load_cluster_config(yaml_file(tmp_path, text)).network.encryption


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "'::'", "localhost.example"])
def test_plaintext_elsewhere_has_to_be_insisted_on(tmp_path: Path, host: str) -> None:
    path = yaml_file(tmp_path, f"coordinator: {{host: {host}}}\nnetwork: {{encryption: false}}")
    with pytest.raises(InvalidSettings, match=r"network\.encryption: must be true .*--allow-plaintext"):
        load_cluster_config(path)
    assert not load_cluster_config(path, allow_plaintext=True).network.encryption


def test_what_loses_precision_is_chosen_by_name_or_with_leave(tmp_path: Path) -> None:
    def compression(network: NetworkSection) -> str:
        return cluster_settings(ClusterConfig(network=network), tmp_path).compression

    assert compression(NetworkSection(compression="fp8")) == "fp8"
    assert compression(NetworkSection(compression="auto", allow_lossy=True)) == "auto"
    assert compression(NetworkSection(compression="auto")) == "none"
