"""Asks for an API key on everything but health and metrics."""

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from distllm.server.errors import InvalidApiKey

_OPEN_PATHS = ("/health", "/metrics")


class AuthMiddleware:
    """Pure ASGI. Keys are compared by digest in constant time. Raises InvalidApiKey before the body is read.

    Where keys are asked for, scope["state"]["owner"] is the digest of the one that was given.
    """

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _is_open(scope["path"]):
            scope.setdefault("state", {})["owner"] = self._check(_bearer_token(scope))
        await self._app(scope, receive, send)

    def _check(self, token: bytes | None) -> str:
        """The key's digest in hexadecimal. Raises InvalidApiKey."""
        if token is None:
            raise InvalidApiKey(is_missing=True)
        given = hashlib.sha256(token).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise InvalidApiKey(is_missing=False)
        return given.hex()


def _is_open(path: str) -> bool:
    return any(path == open_path or path.startswith(open_path + "/") for open_path in _OPEN_PATHS)


def _bearer_token(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = bytes(value).partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" and token.strip() else None
    return None
