"""Descriptors: the limit goes up, and running out of them does not fill the log."""

import asyncio
import errno
import logging
import resource
import subprocess
import sys
from typing import Any

import pytest

from distllm.server.descriptors import QuietAccept


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    program = (
        "import resource\n"
        "from distllm.server.descriptors import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 512))\n"
        "assert raise_descriptor_limit() == 512\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 512)"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 512
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_running_out_of_descriptors_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    handler, loop = QuietAccept(), asyncio.get_running_loop()
    context: dict[str, Any] = {
        "message": "m",
        "exception": OSError(errno.EMFILE, "Too many open files"),
        "socket": 1,
    }
    for _ in range(100):
        handler(loop, context)
    (record,) = caplog.records
    assert (record.levelno, "Too many open files" in record.getMessage()) == (logging.ERROR, True)


async def test_other_failures_are_reported_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    QuietAccept()(asyncio.get_running_loop(), {"message": "another failure"})
    assert "another failure" in caplog.text
