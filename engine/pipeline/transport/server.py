"""An HTTP/2 server in this process's event loop."""

import asyncio
import contextlib
from typing import Any

from h2corn import Config, Server

from distllm.engine.pipeline.security.identity_files import IdentityFiles

WINDOW_BYTES = 64 << 20
"""Bytes under way in a stream: a far peer's round trip must not hold up a large message."""
FRAME_BYTES = 1 << 20
_CLOSE_TIMEOUT_S = 1.0


class Http2Server:
    """Serves `app` at `host`:`port` (0: any free one) from `start` to `close`.

    Callers without a certificate are turned away, or are the application's to judge where it `admits_strangers`.
    Without `files` there is no TLS, and all are.
    """

    def __init__(
        self, app: Any, host: str, port: int, files: IdentityFiles | None, *, admits_strangers: bool = False
    ) -> None:
        bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        config = Config(
            bind=(bind,),
            certfile=None if files is None else files.certificate,
            keyfile=None if files is None else files.key,
            ca_certs=None if files is None else files.authority,
            cert_reqs="none" if files is None else "optional" if admits_strangers else "required",
            http1=False,
            lifespan="off",
            access_log=False,
            h2_max_inbound_frame_size=FRAME_BYTES,
            h2_initial_stream_window_size=WINDOW_BYTES,
            h2_initial_connection_window_size=WINDOW_BYTES,
            max_request_body_size=0,  # the application bounds it
            timeout_keep_alive=0,  # a connection of a quiet edge stays
            timeout_request_body_idle=0,
            timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        )
        self._server = Server(app, config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """The port. Raises OSError where it cannot be had."""
        self._serving = asyncio.create_task(self._server.serve())
        starting = asyncio.create_task(self._server.wait_started())
        await asyncio.wait({self._serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await self._serving
        await starting
        return int(self._server.addresses[0].rpartition(":")[2])

    async def close(self) -> None:
        self._server.shutdown()
        if self._serving is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._serving, 2 * _CLOSE_TIMEOUT_S)
