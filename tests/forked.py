"""Runs a function in a forked child of the test."""

import os
import signal
import warnings
from collections.abc import Callable

_LIMIT_S = 20


def forked(work: Callable[[], str]) -> str:
    """What `work` returns there, or "" where it raised or took too long: then a signal has ended the child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is what is tested
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(_LIMIT_S)
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text
