"""Network namespaces: machines of their own as far as the network goes, on this one.

They have no name and no process that keeps them: a namespace is gone once its object is closed, or this process has
ended, however that came, and the processes that were started in it have ended. Nothing outside is touched.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

_OWN = "/proc/thread-self/ns/net"
_TUN = "/dev/net/tun"
_CLONE_NEWNET = 0x40000000

# <linux/if_tun.h>, <linux/if.h> and <linux/sockios.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000
_IFF_UP = 0x1
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFDSTADDR = 0x8916, 0x8918
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943

_WAITING_PACKETS = 10_000
"""That a device keeps for its reader; by default 500, which a busy machine overruns."""


class NoNamespaces(Exception):
    """They cannot be made here; the message says why, and what would help."""


class Namespace:
    """A machine with a loopback device, known to others by `address`. Raises NoNamespaces."""

    def __init__(self, address: str) -> None:
        self.address = address
        with _allowed(), _back_home():
            _leave_network()
            self._descriptor = os.open(_OWN, os.O_RDONLY)
            try:
                _bring_up("lo")
            except OSError:
                self.close()
                raise

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace, and so are sockets, processes and threads that it makes meanwhile."""
        with _back_home():
            _enter_network(self._descriptor)
            yield

    def open_tunnel(self, other: str, mtu: int) -> int:
        """A device by which the address `other` is reached. Packets are read from and written to its descriptor.

        The descriptor does not block; the device is gone when it is closed. Raises NoNamespaces.
        """
        with self.entered(), _allowed():
            tunnel = _open_tun()
            try:
                asked = struct.pack("16sH22x", b"", _IFF_TUN | _IFF_NO_PI)
                name = fcntl.ioctl(tunnel, _TUNSETIFF, asked)[:16].rstrip(b"\0").decode()
                _set(name, _SIOCSIFMTU, struct.pack("i", mtu))
                _set(name, _SIOCSIFTXQLEN, struct.pack("i", _WAITING_PACKETS))
                _set(name, _SIOCSIFADDR, _packed(self.address))
                _set(name, _SIOCSIFDSTADDR, _packed(other))
                _bring_up(name)
            except OSError:
                os.close(tunnel)
                raise
            return tunnel

    def close(self) -> None:
        os.close(self._descriptor)


@contextlib.contextmanager
def _back_home() -> Iterator[None]:
    """Afterwards this thread is in the network that it was in before."""
    home = os.open(_OWN, os.O_RDONLY)
    try:
        yield
    finally:
        try:
            _enter_network(home)
        finally:
            os.close(home)


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """Raises NoNamespaces where privileges do not suffice."""
    try:
        yield
    except PermissionError as error:
        raise NoNamespaces(
            f"network namespaces may not be made and linked here ({error}); "
            "run as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN and access to /dev/net/tun"
        ) from None


def _leave_network() -> None:
    """For a new one."""
    _check(_libc().unshare(_CLONE_NEWNET))


def _enter_network(descriptor: int) -> None:
    _check(_libc().setns(descriptor, _CLONE_NEWNET))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _open_tun() -> int:
    try:
        return os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise NoNamespaces(f"there is no {_TUN}; load the kernel's module tun") from None
        raise


def _bring_up(name: str) -> None:
    flags = _set(name, _SIOCGIFFLAGS, b"")
    (before,) = struct.unpack_from("H", flags, 16)
    _set(name, _SIOCSIFFLAGS, struct.pack("H", before | _IFF_UP))


def _set(name: str, request: int, value: bytes) -> bytes:
    """A `struct ifreq` to and from a device of the namespace that this thread is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, request, struct.pack("16s24s", name.encode(), value))


def _packed(address: str) -> bytes:
    """A `struct sockaddr_in`."""
    return struct.pack("H2x4s", socket.AF_INET, socket.inet_aton(address))
