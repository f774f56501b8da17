"""Flags win over the environment, the environment over the file; what is unknown is refused with a suggestion."""

from pathlib import Path

import pytest

from distllm.server.config import InvalidSettings, load_settings


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
    assert load_settings({}, None, {"DISTLLM_API_KEY": "x,y"}).server.api_key == ("x", "y")
    assert load_settings({"api_key": ["x", "y"]}, None, {}).server.api_key == ("x", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever: {port: 1}", "section 'sever' is unknown; did you mean server?"),
        ("server: {prt: 1}", "server.prt is unknown; did you mean port?"),
        ("server: 5", "section 'server' must hold settings"),
        ("- 1", "must hold sections"),
        ("server: {port: [", "cannot be read"),
        ("server: {port: 70000}", "setting server.port: .*65535"),
        ("model: {dtype: int3}", "setting model.dtype: .*'bfloat16'"),
    ],
)
def test_an_unusable_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings({}, yaml_file(tmp_path, text), {})


def test_an_unknown_variable_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InvalidSettings, match="DISTLLM_PROT is unknown; did you mean DISTLLM_PORT"):
        load_settings({}, None, {"DISTLLM_PROT": "1", "PATH": "ignored"})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        load_settings({}, tmp_path / "none.yaml", {})
