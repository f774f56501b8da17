"""The Python of docs/python-api.md runs as written, one block after the other, in one script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "python-api.md"


@pytest.mark.slow
def test_the_documents_python_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    script = tmp_path / "script.py"
    script.write_text("\n".join(blocks))
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
    assert run.stdout.splitlines()[-1].startswith("2 ")
