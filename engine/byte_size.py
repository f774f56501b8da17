"""Amounts of memory for people to read."""

_UNITS = ("bytes", "KiB", "MiB", "GiB")


def byte_size(num_bytes: int) -> str:
    """Three figures or so, in the largest unit of which there is at least a tenth: 0.12 GiB, 63 MiB, 12 bytes."""
    power = next((power for power in (3, 2, 1) if num_bytes >= 0.1 * 1024**power), 0)
    amount = num_bytes / 1024**power
    digits = 0 if power == 0 or amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:,.{digits}f} {_UNITS[power]}"
