"""Where the coordinator listens, with a certificate that is made anew before it expires, or in plaintext."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from distllm.engine.pipeline.security.authority import CERTIFICATE_LIFETIME, ClusterAuthority
from distllm.engine.pipeline.security.identity import PeerIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.transport.app import PeerApp
from distllm.engine.pipeline.transport.server import Http2Server

logger = logging.getLogger("distllm.pipeline")


class Desk:
    """Serves `app` at `host`:`port` from `open` to `close`; the files of its certificate are in `directory`."""

    def __init__(
        self,
        app: PeerApp,
        host: str,
        port: int,
        authority: ClusterAuthority,
        directory: Path,
        lifetime: timedelta = CERTIFICATE_LIFETIME,
        check_s: float = 60.0,
        *,
        is_encrypted: bool = True,
    ) -> None:
        self._app = app
        self._host, self._port = host, port
        self._authority = authority
        self._directory = directory
        self._lifetime = lifetime
        self._check_s = check_s
        self._is_encrypted = is_encrypted
        self._identity: PeerIdentity | None = None
        self._server: Http2Server | None = None

    async def open(self) -> int:
        """The port. Raises OSError where it cannot be had."""
        files = None
        if self._is_encrypted:
            self._identity = self._authority.issue_own([], datetime.now(UTC), self._lifetime)
            files = IdentityFiles.keep(self._identity, self._directory)
        self._server = Http2Server(self._app, self._host, self._port, files, admits_strangers=True)
        self._port = await self._server.start()
        return self._port

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def keep_certificate(self) -> None:
        """Renew it in time, where there is one. Peers come back at once to a server that was opened anew."""
        while self._is_encrypted:
            await asyncio.sleep(self._check_s)
            assert self._identity is not None
            if self._identity.needs_renewal(datetime.now(UTC)):
                await self.close()
                await self.open()
                logger.info("the coordinator's certificate was renewed, until %s", self._identity.expires_at)
