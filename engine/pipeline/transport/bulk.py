"""Which of the two connections of an edge a message rides."""

BULK_BYTES = 256 << 10
"""From here on a message is bulk: on a link of 1 Gbit/s it takes 2 ms, which a decode step must not wait for."""


def is_bulk(message: bytes) -> bool:
    """Whether it goes where it holds up no smaller one."""
    return len(message) >= BULK_BYTES
