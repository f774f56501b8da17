"""File descriptors: every connection takes one, and a server without any is deaf."""

import asyncio
import contextlib
import errno
import logging
import resource
import time
from typing import Any

logger = logging.getLogger("distllm.server")

_MOST_DESCRIPTORS = 65_536
_OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_SECONDS_BETWEEN_WARNINGS = 60.0


def raise_descriptor_limit() -> int:
    """Let this process open as many files as it may, within reason. Returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


class QuietAccept:
    """An event loop's exception handler: one line a minute where asyncio has a traceback for every attempt to
    accept a connection without descriptors; everything else goes on to the default handler."""

    def __init__(self) -> None:
        self._warned_at = -_SECONDS_BETWEEN_WARNINGS

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket" not in context or not isinstance(error, OSError) or error.errno not in _OUT_OF_DESCRIPTORS:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = time.monotonic()
            logger.error("connections wait to be accepted: %s; raise the limit of open files", error.strerror)
