"""A peer's identity on disk: three PEM files in a directory of their own, which are replaced as a set.

    DIR/current -> set-5f3a...      a link, replaced in one step
    DIR/set-5f3a.../                certificate.pem  key.pem  authority.pem

The set before the current one is kept, so that whoever has looked it up can still open all three.
"""

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from distllm.engine.durable import locked, sync, write_private
from distllm.engine.pipeline.security.identity import InvalidIdentity, PeerIdentity
from distllm.engine.pipeline.security.state_dir import ClusterStateError, make_private_dir, read_private

_CURRENT = "current"
_SET_PREFIX = "set-"


class NoIdentity(ClusterStateError):
    """Nothing is kept: this machine has not joined a cluster."""


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """One set: the files that a TLS library wants."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def current(cls, directory: Path) -> Self:
        """The newest set in a directory. Raises NoIdentity."""
        try:
            return cls._in((directory / _CURRENT).resolve(strict=True))
        except (FileNotFoundError, NotADirectoryError):
            raise NoIdentity(
                f"{directory} holds no identity: make a token on the coordinator with `distllm token`, and run the "
                "command that it prints here"
            ) from None

    @classmethod
    def keep(cls, identity: PeerIdentity, directory: Path) -> Self:
        """Write a set and make it the current one, all or nothing. Raises ClusterStateError or OSError."""
        make_private_dir(directory)
        with locked(directory):
            files = cls._in(directory / f"{_SET_PREFIX}{secrets.token_hex(8)}")
            files.key.parent.mkdir(mode=0o700)
            write_private(files.key, identity.key_pem)
            write_private(files.certificate, identity.certificate_pem)
            write_private(files.authority, identity.authority_pem)
            _make_current(files.key.parent)
        return files

    def read(self) -> PeerIdentity:
        """Raises ClusterStateError where the files do not make an identity."""
        try:
            return PeerIdentity.from_pem(*map(read_private, (self.key, self.certificate, self.authority)))
        except (FileNotFoundError, InvalidIdentity) as error:
            reason = "a file is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise ClusterStateError(
                f"the identity in {self.key.parent} is damaged: {reason}; remove {self.key.parent.parent} and join "
                "with a new token"
            ) from None

    @classmethod
    def _in(cls, directory: Path) -> Self:
        return cls(directory / "certificate.pem", directory / "key.pem", directory / "authority.pem")


def _make_current(new_set: Path) -> None:
    """Swap the link, then remove all sets but the new one and the one before it."""
    directory = new_set.parent
    link = directory / _CURRENT
    previous = os.readlink(link) if link.is_symlink() else None
    unfinished = directory / f".{_CURRENT}.{secrets.token_hex(4)}"
    unfinished.symlink_to(new_set.name)
    os.replace(unfinished, link)
    sync(directory)
    for path in directory.glob(f"{_SET_PREFIX}*"):
        if path.name not in (new_set.name, previous):
            shutil.rmtree(path, ignore_errors=True)
