"""Opens the ports that people and programs reach this server at."""

import socket


class CannotServe(Exception):
    """The server cannot start; the message is one line that names the remedy."""


def listen(host: str, port: int, remedy: str = "see --host and --port") -> socket.socket:
    """A socket that accepts connections. Raises CannotServe."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be a host's
        reason, _, _ = (getattr(error, "strerror", None) or str(error)).partition(" (while attempting to bind")
        raise CannotServe(f"cannot listen on {host}:{port}: {reason}; {remedy}") from None


def url_of(listener: socket.socket) -> str:
    """Where an open socket is found."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
