"""Where torch.distributed lets ranks find each other: a file on one host, a store on the first of several hosts."""

import os
import socket
import tempfile
from typing import Protocol
from urllib.parse import urlsplit

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distllm.engine.distributed.shared_bytes import create_descriptor


class MeetingPoint(Protocol):
    """Open while this process has it; close it."""

    url: str

    def close(self) -> None: ...


class FileMeetingPoint:
    """A file that every process of this user can open, and of which nothing is left by a kill."""

    def __init__(self) -> None:
        self._descriptor = self._directory = None
        if hasattr(os, "memfd_create"):
            self._descriptor = create_descriptor()
            self.url = f"file:///proc/{os.getpid()}/fd/{self._descriptor}"
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="distllm-ranks-")
            self.url = f"file://{self._directory.name}/meeting-point"

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._directory is not None:
            self._directory.cleanup()


class StoreMeetingPoint:
    """torch's store at a free port of `address`, on that interface alone. It believes whoever connects."""

    def __init__(self, address: str) -> None:
        ((family, *_), *_) = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
        with socket.create_server((address, 0), family=family) as listener:
            port = listener.getsockname()[1]
            descriptor = listener.detach()
        self._store: TCPStore | None = TCPStore(
            address, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
        )
        self.url = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"

    def close(self) -> None:
        self._store = None


def open_store(url: str) -> TCPStore:
    """A rank's connection to a StoreMeetingPoint."""
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    return TCPStore(place.hostname, place.port, is_master=False, wait_for_workers=False)


def interface_towards(host: str, port: int) -> str | None:
    """The network interface through which this process reaches `host`; None where that is not to be told."""
    ((family, *_, place), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return name
    return None
