"""Amounts of memory for people to read, and to write."""

import re

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])iB")
_UNITS = ("bytes", "KiB", "MiB", "GiB")


def byte_size(num_bytes: int) -> str:
    """Three figures or so, in the largest unit of which there is at least a tenth: 0.12 GiB, 63 MiB, 12 bytes."""
    power = next((power for power in (3, 2, 1) if num_bytes >= 0.1 * 1024**power), 0)
    amount = num_bytes / 1024**power
    digits = 0 if power == 0 or amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:,.{digits}f} {_UNITS[power]}"


def parse_byte_size(text: str) -> int:
    """Of an amount such as 50GiB or 1.5 TiB. Raises ValueError."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"must be an amount in KiB, MiB, GiB or TiB, such as 50GiB, not {text!r}")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))
