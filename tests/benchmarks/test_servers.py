"""Server processes for a measurement: they are waited for, watched and ended, whatever happens."""

import sys
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.frontend_overhead import processor_seconds, shares_of
from benchmarks.load import LoadResult
from benchmarks.servers import OURS, Command, ServerFailedError, running

SERVE = "import sys, subprocess, http.server as h\n"
CHILD = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
LISTEN = "h.ThreadingHTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"


def command(script: str) -> Command:
    return Command("test", (sys.executable, "-c", script), "/")


def test_a_server_is_ready_inside_and_gone_outside_with_its_children(tmp_path: Path) -> None:
    with running(command(SERVE + CHILD + LISTEN), "", tmp_path / "log") as server:
        assert httpx.get(server.base_url).is_success
        assert server.start_s > 0
        processes = server.tree()
        assert len(processes) == 2
        assert server.memory_bytes() > 1_000_000
        assert set(processor_seconds(processes)) == {process.pid for process in processes}
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    ends = running(command("raise SystemExit('no such checkpoint')"), "", tmp_path / "log")
    with pytest.raises(ServerFailedError, match="no such checkpoint"), ends:
        pytest.fail("it never ran")


def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    sleeps = running(command("import time; time.sleep(60)"), "", tmp_path / "log", timeout_s=0.2)
    with pytest.raises(ServerFailedError, match="not ready within"), sleeps:
        pytest.fail("it never was ready")


def test_a_failing_measurement_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), running(command(SERVE + LISTEN), "", tmp_path / "log") as server:
        raise ZeroDivisionError
    assert not server.process.is_running()


def test_without_a_model_no_argument_is_left_for_it() -> None:
    assert OURS.fill("", 81)[1:] == ["serve", "--port", "81"]
    assert OURS.fill("some/path", 81)[1:] == ["serve", "some/path", "--port", "81"]


def test_shares_are_of_one_core_and_children_are_the_engine() -> None:
    result = LoadResult([], duration_s=10.0, client_cpu_s=1.0)
    shares = shares_of(7, {7: 5.0, 8: 1.0}, {7: 7.0, 8: 9.0, 9: 1.0}, result)
    assert (shares.front_end, shares.engine, shares.client) == (0.2, 0.9, 0.1)
