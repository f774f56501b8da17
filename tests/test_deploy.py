"""Dockerfile, compose file, Prometheus and Grafana: they agree with one another and with the server."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import yaml

from distllm.scheduler.latest import Latest
from distllm.scheduler.stats import EngineStats
from distllm.server.cli import main
from distllm.server.cluster_config import load_cluster_config
from distllm.server.config import fields
from distllm.server.metrics import Metrics
from distllm.server.ports import Engine
from tests.clusters import sample_cluster

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "server/dashboard"
BOARD = json.loads((DASHBOARD / "grafana/boards/distllm.json").read_text())


def read_compose(name: str) -> dict[str, Any]:
    """A compose file with what its services extend: lists are joined, as compose does, the rest is replaced."""
    file = yaml.safe_load((ROOT / name).read_text())
    for service in file["services"].values():
        if (base := service.pop("extends", None)) is None:
            continue
        for key, value in read_compose(base["file"])["services"][base["service"]].items():
            joins = key in ("environment", "ports", "volumes") and key in service
            service[key] = [*value, *service[key]] if joins else service.get(key, value)
    return cast(dict[str, Any], file)


COMPOSE = read_compose("docker-compose.yml")
CLUSTER = read_compose("docker-compose.cluster.yml")
every_compose_file = pytest.mark.parametrize("compose", [COMPOSE, CLUSTER], ids=["single", "cluster"])
SCRAPED_BY_PROMETHEUS_ITSELF = {"up"}
PROMQL_WORDS = {
    "sum",
    "max",
    "by",
    "le",
    "rate",
    "increase",
    "changes",
    "histogram_quantile",
    "and",
    "label_values",
}


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions as (name, arguments), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def last(name: str) -> str:
    return [arguments for instruction, arguments in dockerfile() if instruction == name][-1]


def queries() -> Iterator[str]:
    for panel in BOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (variable["query"]["query"] for variable in BOARD["templating"]["list"])
    for group in yaml.safe_load((DASHBOARD / "rules.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def metric_names(query: str) -> set[str]:
    """The metrics that a PromQL expression reads: its words outside of selectors, ranges and groupings."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby\s*\([^)]*\)|,\s*model_name\)", " ", query)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - PROMQL_WORDS


def exposition() -> str:
    """What /metrics says of a coordinator."""
    engine = SimpleNamespace(
        stats=EngineStats(), num_restarts=0, loading=None, state="ready", cluster=Latest(sample_cluster())
    )
    return Metrics(cast(Engine, engine), "tiny").render().decode()


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Every series name that /metrics can have."""
    text = exposition()
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE):
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}.get(kind, ("",))
        names |= {name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_every_query_reads_metrics_that_the_server_has(query: str, exposed: set[str]) -> None:
    names = metric_names(query)
    assert names
    assert names <= exposed | SCRAPED_BY_PROMETHEUS_ITSELF


def test_the_engine_states_that_queries_name_exist() -> None:
    text = exposition()
    for query in queries():
        for state in re.findall(r'state="(\w+)"', query):
            assert f'distllm_engine_state{{state="{state}"}}' in text


def test_the_finish_reasons_that_queries_name_exist() -> None:
    text = exposition()
    for query in queries():
        for reason in re.findall(r'finished_reason="(\w+)"', query):
            assert f'finished_reason="{reason}"' in text


def test_every_panel_reads_the_provisioned_datasource() -> None:
    [source] = yaml.safe_load((DASHBOARD / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_the_board_has_what_the_page_of_a_cluster_shows() -> None:
    shown = set().union(*map(metric_names, queries()))
    figures = (
        "peers stage_layers peer_compute_seconds_total stage_kv_blocks beat_age_seconds stage_predicted_seconds "
        "link_seconds link_delay_seconds link_bytes_per_second link_goodput_bytes_per_second epoch "
        "recoveries_total recovery_seconds_total last_recovery_seconds free_bytes round_trip_seconds"
    )
    assert {f"distllm_cluster_{figure}" for figure in figures.split()} <= shown


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_prometheus_scrapes_the_port_that_the_server_listens_on() -> None:
    config = yaml.safe_load((DASHBOARD / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{fields()['port'][1].default}"]}]
    assert "server" in COMPOSE["services"]
    assert "server" in CLUSTER["services"]["coordinator"]["networks"]["default"]["aliases"]
    assert job.get("metrics_path", "/metrics") == "/metrics"


@every_compose_file
def test_compose_mounts_only_files_of_the_repository_and_named_volumes(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in compose["volumes"] or (ROOT / source).exists(), mount


def test_compose_mounts_the_rules_where_prometheus_looks_for_them() -> None:
    config = yaml.safe_load((DASHBOARD / "prometheus.yml").read_text())
    targets = [mount.split(":")[1] for mount in COMPOSE["services"]["prometheus"]["volumes"]]
    for file in config["rule_files"]:
        assert f"/etc/prometheus/{file}" in targets


def test_compose_mounts_the_board_where_grafana_looks_for_it() -> None:
    provider = yaml.safe_load((DASHBOARD / "grafana/provisioning/dashboards/distllm.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    grafana = COMPOSE["services"]["grafana"]
    assert f"./server/dashboard/grafana/boards:{folder}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/distllm.json"


@every_compose_file
def test_every_port_of_a_compose_file_is_published_on_loopback_only(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_what_people_open_is_published() -> None:
    for compose, server in ((COMPOSE, "server"), (CLUSTER, "coordinator")):
        published = {name for name, service in compose["services"].items() if service.get("ports")}
        assert published == {server, "prometheus", "grafana"}


def test_compose_sets_only_variables_that_the_server_knows() -> None:
    for service in (COMPOSE["services"]["server"], CLUSTER["services"]["coordinator"]):
        for variable in service["environment"]:
            if variable.startswith("DISTLLM_"):
                assert variable.removeprefix("DISTLLM_").lower() in fields()


def test_compose_waits_longer_for_the_end_than_the_server_drains() -> None:
    for service in (COMPOSE["services"]["server"], CLUSTER["services"]["coordinator"]):
        assert float(service["stop_grace_period"].removesuffix("s")) > fields()["drain_s"][1].default


def test_the_cluster_s_configuration_is_one_and_agrees_with_the_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER["configs"]["cluster"]["content"])
    coordinator = load_cluster_config(path).coordinator
    service = CLUSTER["services"]["coordinator"]
    assert f"127.0.0.1:8080:{coordinator.dashboard_port}" in service["ports"]
    assert coordinator.page_host == "0.0.0.0"
    assert coordinator.num_stages is not None
    assert coordinator.num_stages < len(peers())
    serve = Mock(return_value=0)
    monkeypatch.setattr("distllm.server.launch.serve", serve)
    assert main([*json.loads(last("ENTRYPOINT"))[1:], *service["command"]]) == 0
    [settings] = serve.call_args.args
    [config] = service["configs"]
    assert settings.cluster.coordinator == Path(config["target"])
    assert settings.cluster.state == Path("/state/cluster")
    assert all(f"coordinator:{coordinator.port} " in peer["command"][0] for peer in peers().values())


def test_the_cluster_s_directories_belong_to_the_user_of_the_image() -> None:
    places = {mount.split(":")[1] for peer in peers().values() for mount in peer["volumes"]}
    made = re.search(r"install --directory --owner distllm ([^&]*)", last("RUN"))
    assert made
    assert places <= set(made[1].split())


def peers() -> dict[str, Any]:
    return {name: service for name, service in CLUSTER["services"].items() if name.startswith("peer-")}


def run_in_container(script: str, root: Path, **environment: str) -> list[str]:
    """Run a service's script with the container's folders under `root`, and a distllm that prints its arguments."""
    command = root / "bin" / "distllm"
    command.parent.mkdir(exist_ok=True)
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    script = re.sub(r"/(state|tokens)\b", rf"{root}/\1", script.replace("$$", "$"))
    path = {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    run = subprocess.run(
        ["/bin/sh", "-euc", script], env=path | environment, capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


def test_each_peer_joins_with_a_token_of_its_own_once(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    run_in_container(CLUSTER["services"]["tokens"]["command"][0], tmp_path)
    assert {file.name for file in (tmp_path / "tokens").iterdir()} == set(peers())
    for name, service in peers().items():
        assert service["hostname"] == name
        token = tmp_path / "tokens" / name
        assert token.stat().st_mode & 0o077 == 0
        assert token.read_text() == "token\n", "the first line of what is printed"
        token.write_text(f"token of {name}\n")
        joining = run_in_container(service["command"][0], tmp_path, HOSTNAME=name)
        assert joining[0] == "peer"
        assert joining[-2:] == ["--token", f"token of {name}"]
    (tmp_path / "state" / "peer" / "current").mkdir(parents=True)
    again = run_in_container(service["command"][0], tmp_path, HOSTNAME=name, DISTLLM_MODEL="org/a model")
    assert "--token" not in again
    assert again[-2:] == ["--model", "org/a model"]


def test_peers_understand_the_flags_that_compose_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "peer-1").write_text("t")
    arguments = run_in_container(
        peers()["peer-1"]["command"][0], tmp_path, HOSTNAME="peer-1", DISTLLM_MODEL="org/name"
    )
    run_peer = Mock(return_value=0)
    monkeypatch.setattr("distllm.server.peer.run_peer", run_peer)
    assert main(arguments) == 0
    [parsed] = run_peer.call_args.args
    assert (parsed.join, parsed.name, parsed.token, parsed.model) == ("coordinator:5555", "peer-1", "t", "org/name")


def test_the_image_runs_as_a_user_without_privileges() -> None:
    names = [name for name, _ in dockerfile()]
    user = last("USER")
    assert user not in ("root", "0")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert f"useradd --create-home --uid 10001 {user}" in last("RUN")


def test_the_compiler_stays_in_the_first_stage() -> None:
    stages = [number for number, (name, _) in enumerate(dockerfile()) if name == "FROM"]
    assert len(stages) == 2
    assert not any("g++" in arguments for _, arguments in dockerfile()[stages[1] :])


def test_the_image_serves_on_every_interface_at_the_usual_port() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["distllm", "serve", "--host", "0.0.0.0"]
    assert int(last("EXPOSE")) == fields()["port"][1].default


def test_the_image_installs_what_the_project_depends_on() -> None:
    """The very command of the Dockerfile, run here."""
    [command] = [arguments for name, arguments in dockerfile() if name == "RUN" and "tomllib" in arguments]
    script = re.search(r'python -c "(.*?)"\s+> /tmp/runtime.txt', command)
    assert script
    printed = subprocess.run(
        [sys.executable, "-c", script[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed.stdout.splitlines() == project["dependencies"]


def test_what_the_wheel_is_built_from_reaches_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    links = {link.resolve().name for link in (ROOT / "src/distllm").iterdir() if link.is_symlink()}
    built_from = {"pyproject.toml", "setup.py", "requirements.lock", "README.md", "LICENSE", "src"}
    assert built_from | links <= allowed
    assert all((ROOT / name).exists() for name in allowed)


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_follows_readiness(status: int, is_healthy: bool) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        _, *command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
        proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        environment = os.environ | {"DISTLLM_PORT": str(server.server_address[1])} | proxy
        run = subprocess.run([sys.executable, *command], env=environment, capture_output=True, timeout=30)
        thread.join()
    assert asked == ["/health/ready"]
    assert (run.returncode == 0) is is_healthy
