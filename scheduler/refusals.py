"""Why the front end's side of the engine takes no request: each has one HTTP status."""


class QueueFull(Exception):
    """Too many sequences are live. `retry_after_s` is when some have probably ended."""

    def __init__(self, num_live: int, retry_after_s: float) -> None:
        super().__init__(
            f"{num_live} sequences are running or waiting, as many as this server takes; "
            f"try again in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


class EngineDraining(Exception):
    """The server is shutting down and takes no new requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down and takes no new requests")


class EngineUnavailable(Exception):
    """No engine is running: it has not started yet, or cannot start. `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
