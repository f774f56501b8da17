"""The Python of docs/python-api.md runs as written, one block after the other, in one script."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RunningServer

ADDRESS = "http://127.0.0.1:8000"
DOCUMENT = Path(__file__).parents[2] / "docs" / "python-api.md"


@pytest.mark.slow
def test_the_documents_python_runs_as_written(tmp_path: Path, embedded_server: "RunningServer") -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    script = tmp_path / "script.py"
    script.write_text("\n".join(blocks).replace(ADDRESS, embedded_server.url))
    environment = {"HF_HUB_OFFLINE": "1", "DISTLLM_RANK_TIMEOUT_S": "30", "DISTLLM_KV_CACHE_MEMORY": "0.05"}
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    assert "there was" in run.stdout
    lines = run.stdout.splitlines()
    assert any(line.startswith("2 ") for line in lines)
    assert "is the cheapest that meets the target" in lines[-1]
