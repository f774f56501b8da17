"""Spans of time for people to read."""

_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))


def duration(seconds: float) -> str:
    """Three figures or so, in the largest unit of which there is at least one: 1.20 s, 45.1 ms, 120 µs."""
    unit, per_second = next((unit for unit in _UNITS if seconds * unit[1] >= 1), _UNITS[-1])
    amount = seconds * per_second
    digits = 0 if amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:,.{digits}f} {unit}"
