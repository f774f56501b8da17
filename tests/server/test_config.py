"""Flags win over the environment, the environment over the file; what is unknown is refused with a suggestion."""

from pathlib import Path

import pytest

from distllm.server.config import InvalidSettings, Settings, fields
from distllm.server.config_sources import load_settings


def yaml_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "distllm.yaml"
    path.write_text(text)
    return path


def test_defaults_serve_the_embedded_model_on_loopback() -> None:
    settings = load_settings({}, None, {})
    assert (settings.server.host, settings.server.port, settings.model.model) == ("127.0.0.1", 8000, None)


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "server: {port: 1, host: a, drain_s: 3}\nscheduler: {max_num_seqs: 9}")
    settings = load_settings({"port": "3"}, config, {"DISTLLM_PORT": "2", "DISTLLM_HOST": "b"})
    assert settings.server.port == 3
    assert settings.server.host == "b"
    assert settings.server.drain_s == 3
    assert settings.scheduler.max_num_seqs == 9


def test_repeatable_settings_are_lists_in_files_and_comma_separated_in_variables(tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "server: {api_key: [x, y]}")
    assert load_settings({}, config, {}).server.api_key == ("x", "y")
    assert load_settings({}, None, {"DISTLLM_API_KEY": "x, y"}).server.api_key == ("x", "y")
    assert load_settings({"api_key": ["x", "y"]}, None, {}).server.api_key == ("x", "y")


def test_one_value_of_a_list_may_stand_alone_in_a_file_and_a_section_may_be_empty(tmp_path: Path) -> None:
    config = yaml_file(tmp_path, "server: {api_key: x}\nmodel:\nengine: {}")
    assert load_settings({}, config, {}).server.api_key == ("x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: {port: 1}", "section 'sever' is unknown; did you mean server?"),
        ("server: {prt: 1}", "server.prt is unknown; did you mean port?"),
        ("server: 5", "section 'server' must hold settings"),
        ("- 1", "must hold sections"),
        ("server: {port: [", "cannot be read: expected the node content, .* in line 1$"),
        ("a: b: c", "cannot be read: mapping values are not allowed here in line 1$"),
        ("server: {port: 1}\nserver: {}", "cannot be read: server is given a second time in line 2$"),
        ("server: {port: 1, host: a, port: 2}", "cannot be read: port is given a second time in line 1$"),
        ("server: {port: 2020-13-45}", "cannot be read: month must be in 1..12"),
        ("server: {port: 70000}", "setting server.port: .*65535"),
        ("model: {dtype: int3}", "setting model.dtype: .*'bfloat16'"),
    ],
)
def test_an_unusable_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings({}, yaml_file(tmp_path, text), {})


def test_an_unknown_variable_is_ignored_and_warned_of_where_it_resembles_a_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    others = {"DISTLLM_SERVICE_HOST": "10.0.0.1", "DISTLLM_PORT_8000_TCP": "tcp://10.0.0.1:8000", "PATH": "/bin"}
    given = load_settings({}, None, {"DISTLLM_PROT": "1", **others})
    assert given.model_dump() == Settings().model_dump()
    assert caplog.messages == ["ignored DISTLLM_PROT; did you mean DISTLLM_PORT?"]


def test_an_empty_variable_is_none() -> None:
    empty = {f"DISTLLM_{name.upper()}": "" for name in fields()}
    assert load_settings({}, None, empty).model_dump() == Settings().model_dump()


def test_a_port_that_kubernetes_set_is_explained_unless_a_flag_gives_another() -> None:
    kubernetes = {"DISTLLM_PORT": "tcp://10.0.0.1:8000"}
    with pytest.raises(InvalidSettings, match="Kubernetes sets it for a service named distllm: give --port"):
        load_settings({}, None, kubernetes)
    assert load_settings({"port": 9000}, None, kubernetes).server.port == 9000


def test_variables_of_sections_that_are_not_used_are_not_looked_at() -> None:
    environment = {"DISTLLM_PORT": "tcp://10.0.0.1:8000", "DISTLLM_MAX_NUM_SEQS": "3"}
    settings = load_settings({}, None, environment, used=("scheduler",))
    assert (settings.server.port, settings.scheduler.max_num_seqs) == (8000, 3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": "x"}, "setting server.port: must be a whole number, not 'x'"),
        ({"max_num_seqs": 0}, "setting scheduler.max_num_seqs: must be at least 1, not 0"),
        ({"kv_cache_memory": "inf"}, "setting engine.kv_cache_memory: must be a finite number, not 'inf'"),
        ({"max_body_mb": 0}, "setting server.max_body_mb: must be above 0.0, not 0"),
        ({"prefix_caching": "maybe"}, "setting scheduler.prefix_caching: must be true or false, not 'maybe'"),
        ({"served_model_name": [""]}, "setting server.served_model_name: must not be empty"),
        ({"host": ""}, "setting server.host: must not be empty"),
        ({"api_key": [12345]}, "setting server.api_key: must be text; in YAML, write it in quotes"),
        (
            {"api_key": ["schlüssel"]},
            "setting server.api_key: must be of printable ASCII characters other than spaces",
        ),
    ],
)
def test_a_wrong_value_is_said_in_plain_words_and_a_key_never_shown(flags: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(flags, None, {})
    assert str(caught.value) == words


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        load_settings({}, tmp_path / "none.yaml", {})


@pytest.mark.parametrize("flags", [{"weights_memory": "1"}, {"offload_dir": "/var/tmp"}])
def test_how_to_offload_is_said_in_vain_without_offloading(flags: dict[str, str]) -> None:
    (name,) = flags
    with pytest.raises(InvalidSettings, match=rf"setting engine\.{name} says how to offload: give --offload"):
        load_settings(flags, None)
    assert load_settings({**flags, "offload": "disk"}, None).engine.offload == "disk"


def test_hybrid_needs_a_coordinator(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"cluster.mode: hybrid needs peers as well: give --coordinator"):
        load_settings({"mode": "hybrid"}, None, {})
    settings = load_settings({"mode": "hybrid", "coordinator": tmp_path / "cluster.yaml"}, None, {})
    assert (settings.routing.target_ttft_s, settings.routing.target_tpot_s) == (1.0, 0.1)


@pytest.mark.parametrize("name", ["target_ttft_s", "target_tpot_s", "patience_s"])
def test_times_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(InvalidSettings, match=name):
        load_settings({name: "-1"}, None, {})
