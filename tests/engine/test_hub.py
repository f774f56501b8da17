"""Hub names are fetched from a stand-in hub on loopback by a process of its own, as a user's would be."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save

from distllm.engine.hub import ModelNotFound, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARD = save({"w": torch.ones(4)})
REPOSITORY: Mapping[str, bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"# not needed",
    "pytorch_model.bin": b"not needed" * 100,
    "consolidated.safetensors": b"not needed" * 100,
    "original/params.json": b"{}",
    "model-00001-of-00002.safetensors": SHARD,
    "model-00002-of-00002.safetensors": SHARD,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}


@dataclass
class StandInHub:
    """Serves REPOSITORY as owner/tiny, and remembers which files were fetched, and of which only a part."""

    server: ThreadingHTTPServer
    fetched: list[str] = field(default_factory=list)
    peeked: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
            status, headers, body = respond(path, with_body, stand_in, is_part=part is not None)
            if part is not None and status == 200:
                first, last = int(part[1]), min(int(part[2]), len(body) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                status, body = 206, body[first : last + 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in = StandInHub(server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield stand_in
    server.shutdown()
    thread.join()
    server.server_close()


def respond(
    path: str, with_body: bool, hub: StandInHub, *, is_part: bool = False
) -> tuple[int, dict[str, str], bytes]:
    api, files = "/api/models/owner/tiny", "/owner/tiny/resolve/"
    if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
        siblings = [{"rfilename": name} for name in REPOSITORY]
        return 200, {}, json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode()
    if path.startswith(f"{api}/tree/"):
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": f"{len(content):040x}"}
            for name, content in REPOSITORY.items()
        ]
        return 200, {}, json.dumps(entries).encode()
    if path.startswith(f"{api}/revision/"):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    if path.startswith(files):
        _, _, name = path.removeprefix(files).partition("/")
        if name not in REPOSITORY:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if with_body:
            (hub.peeked if is_part else hub.fetched).append(name)
        return 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, REPOSITORY[name]
    return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


RESOLVE = "print(resolve(model, revision))"
INSPECT = """
checkpoint = inspect(model, revision)
print({name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()}, dict(checkpoint.config))
"""


def resolve_elsewhere(
    home: Path,
    model: str,
    endpoint: str,
    *,
    offline: bool = False,
    revision: str | None = None,
    what: str = RESOLVE,
) -> str:
    """What a fresh process prints: what was asked for, or the error's one line."""
    script = (
        "import sys\n"
        "from distllm.engine.hub import ModelNotFound, inspect, resolve\n"
        "model, revision = sys.argv[1], sys.argv[2] or None\n"
        "try:\n"
        "    exec(sys.argv[3])\n"
        "except ModelNotFound as error:\n"
        "    print('refused:', error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, model, revision or "", what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_look_at_a_checkpoint_fetches_its_config_and_the_headers_of_its_weights(
    hub: StandInHub, tmp_path: Path
) -> None:
    said = resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint, what=INSPECT)
    assert said == "{'w': ('F32', (4,))} {'model_type': 'llama'}"
    assert set(hub.fetched) == {"config.json", "model.safetensors.index.json"}
    assert set(hub.peeked) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def test_a_look_at_what_was_fetched_before_needs_no_hub(hub: StandInHub, tmp_path: Path) -> None:
    resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint)
    said = resolve_elsewhere(tmp_path, "owner/tiny", "http://127.0.0.1:9", offline=True, what=INSPECT)
    assert said == "{'w': ('F32', (4,))} {'model_type': 'llama'}"


@pytest.mark.parametrize("offline", [False, True])
def test_a_look_without_a_hub_says_so_in_one_line(tmp_path: Path, offline: bool) -> None:
    said = resolve_elsewhere(tmp_path, "owner/tiny", "http://127.0.0.1:9", offline=offline, what=INSPECT)
    assert said.startswith("refused: owner/tiny is not on this machine and ")
    assert "\n" not in said


def test_a_look_after_the_hub_was_lost_says_so_in_one_line(hub: StandInHub, tmp_path: Path) -> None:
    resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint, what=INSPECT)
    said = resolve_elsewhere(tmp_path, "owner/tiny", "http://127.0.0.1:9", offline=True, what=INSPECT)
    assert said == "refused: owner/tiny is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it"


def test_only_what_is_needed_is_fetched(hub: StandInHub, tmp_path: Path) -> None:
    directory = Path(resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint))
    assert directory.name == COMMIT
    unneeded = {"README.md", "pytorch_model.bin", "consolidated.safetensors", "original/params.json"}
    assert set(hub.fetched) == REPOSITORY.keys() - unneeded
    assert (directory / "model-00002-of-00002.safetensors").read_bytes() == SHARD


def test_what_was_fetched_serves_offline(hub: StandInHub, tmp_path: Path) -> None:
    directory = resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint)
    hub.fetched.clear()
    assert resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint, offline=True) == directory
    assert hub.fetched == []


def test_offline_without_a_copy_says_so_in_one_line(tmp_path: Path) -> None:
    said = resolve_elsewhere(tmp_path, "owner/tiny", "http://127.0.0.1:9", offline=True)
    assert said == "refused: owner/tiny is not on this machine and HF_HUB_OFFLINE=1 forbids fetching it"


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    said = resolve_elsewhere(tmp_path, "owner/tiny", "http://127.0.0.1:9")
    assert said.startswith("refused: owner/tiny is not on this machine and http://127.0.0.1:9 cannot be reached")
    assert "\n" not in said


def test_an_unknown_name_is_refused(hub: StandInHub, tmp_path: Path) -> None:
    said = resolve_elsewhere(tmp_path, "owner/other", hub.endpoint)
    assert said == "refused: the hub knows no owner/other; a private model needs HF_TOKEN"


def test_an_unknown_revision_is_refused(hub: StandInHub, tmp_path: Path) -> None:
    said = resolve_elsewhere(tmp_path, "owner/tiny", hub.endpoint, revision="v9")
    assert said == "refused: owner/tiny has no revision v9"


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(SHARD)
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "has no config.json"),
        (("config.json",), "has no model.safetensors"),
        (("config.json", "pytorch_model.bin"), "has no safetensors files; convert"),
    ],
)
def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelNotFound) as caught:
        resolve(str(tmp_path))
    assert words in str(caught.value)


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/directory", "a/b/c", "owner/na me"])
def test_what_is_neither_directory_nor_hub_name_is_refused(model: str) -> None:
    with pytest.raises(ModelNotFound, match="no directory"):
        resolve(model)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(SHARD)
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"))
