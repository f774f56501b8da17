"""The join tokens that a coordinator has made: digests, never secrets, in a file that several processes share.

valid --redeem--> used        a record is forgotten when its token has expired, whether it was used or not
"""

import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from distllm.engine.durable import locked, write_private
from distllm.engine.pipeline.security.encryption import read_encryption
from distllm.engine.pipeline.security.join_token import (
    ExpiredToken,
    JoinToken,
    OtherCluster,
    UnknownToken,
    UsedToken,
)
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir, read_private

_FILE_NAME = "tokens.json"


class TokenRecord(msgspec.Struct, frozen=True):
    """One token; `used_at` is None while nobody has joined with it."""

    digest: str
    expires_at: datetime
    used_at: datetime | None = None


class TokenStore:
    """The tokens of one cluster, by its state directory and its authority's fingerprint.

    Every call reads and writes the file under its directory's lock: any number of processes may have a store.
    """

    def __init__(self, state_dir: Path, fingerprint: str) -> None:
        self._state_dir = state_dir
        self._path = state_dir / _FILE_NAME
        self._fingerprint = fingerprint

    def make(self, lifetime: timedelta, now: datetime) -> str:
        """A new token's text, which is told once and not kept. Raises ClusterStateError or OSError."""
        if lifetime <= timedelta(0):
            raise ValueError(f"a token's lifetime must be above 0, not {lifetime}")
        is_encrypted = read_encryption(self._state_dir)
        token = JoinToken.make(self._fingerprint, now + lifetime, is_encrypted=is_encrypted)
        with locked(make_private_dir(self._state_dir)):
            self._write([*self._read(now), TokenRecord(token.digest, token.expires_at)])
        return token.text

    def redeem(self, text: str, now: datetime) -> None:
        """Use a token up. It is on disk that it is used when this returns.

        Raises MistypedToken, OtherTokenVersion, OtherCluster, ExpiredToken, UsedToken or UnknownToken, all of which
        are JoinRefused; ClusterStateError or OSError where the file cannot be read or written.
        """
        token = JoinToken.parse(text)
        if not hmac.compare_digest(token.fingerprint, self._fingerprint):
            raise OtherCluster
        if now >= token.expires_at:
            raise ExpiredToken(token.expires_at)
        with locked(make_private_dir(self._state_dir)):
            records = self._read(now)
            found = _find(records, token.digest)
            if found is None:
                raise UnknownToken
            if found.used_at is not None:
                raise UsedToken(found.used_at)
            used = msgspec.structs.replace(found, used_at=now)
            self._write([used if record is found else record for record in records])

    def _read(self, now: datetime) -> list[TokenRecord]:
        """The records of tokens that have not expired."""
        try:
            records = msgspec.json.decode(read_private(self._path), type=list[TokenRecord])
        except FileNotFoundError:
            return []
        except msgspec.DecodeError:
            raise ClusterStateError(
                f"{self._path} is damaged: remove it, and make new tokens for those who have not joined yet"
            ) from None
        return [record for record in records if now < record.expires_at]

    def _write(self, records: Sequence[TokenRecord]) -> None:
        encoded = msgspec.json.encode(records)
        write_private(self._path, msgspec.json.format(encoded, indent=1) + b"\n")


def _find(records: Sequence[TokenRecord], digest: str) -> TokenRecord | None:
    """Takes the same time wherever the token is, and if it is nowhere."""
    found = None
    for record in records:
        if hmac.compare_digest(record.digest, digest):
            found = record
    return found
