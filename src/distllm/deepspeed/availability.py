"""Whether DeepSpeed can be used here, which several ranks need. Imports neither it nor torch."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

_LEAST_VERSION = (0, 19)


@dataclass(frozen=True, slots=True)
class Availability:
    """True where `reason` is None; else `reason` says in one line what is missing."""

    reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is None


def is_deepspeed_available() -> Availability:
    """Whether models can be divided over ranks, which DeepSpeed joins; false with a `reason`."""
    for package in ("torch", "deepspeed"):
        if find_spec(package) is None:
            return Availability(f"{package} is not installed: pip install {package}")
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        return Availability(
            "deepspeed has no metadata, as if half installed: pip install --force-reinstall deepspeed"
        )
    if tuple(map(int, found.split(".")[:2])) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        return Availability(f"deepspeed is {found}, and {least} is the least that serves: pip install -U deepspeed")
    return Availability()
