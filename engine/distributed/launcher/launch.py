"""Where DeepSpeed's launcher has put this process among the ranks of a model. Importable without torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

_COUNTS = {
    "rank": "RANK",
    "size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_size": "LOCAL_SIZE",
    "host": "CROSS_RANK",
    "num_hosts": "CROSS_SIZE",
    "port": "MASTER_PORT",
}
_ADDRESS = "MASTER_ADDR"
_LAST_PORT = 65535
SECRET_VARIABLE = "DISTLLM_RANK_SECRET"
_MIN_SECRET_LENGTH = 16


class LaunchError(ValueError):
    """Ranks that a launcher has placed cannot work together; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """This process's place: rank `rank` of `size`, which is number `local_rank` of `local_size` on its host.

    That is number `host` of `num_hosts`. `address` and `port` are the first host's, where the ranks may meet.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: int
    num_hosts: int
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedRanks:
    """What the engine process must know to meet the ranks that a launcher has placed.

    `listener` is a descriptor that it inherits, on which they come; `num_local` of the ranks are on its own host.
    `binds_cores` says that the launcher has bound each rank to cores of its own.
    """

    size: int
    num_local: int
    num_hosts: int
    address: str
    listener: int
    binds_cores: bool


def find_launch(environment: Mapping[str, str]) -> Launch | None:
    """The place that the launcher's variables tell; None where it has not started this process.

    Raises LaunchError.
    """
    if any(variable not in environment for variable in (*_COUNTS.values(), _ADDRESS)):
        return None
    counts = {name: _read(environment, variable) for name, variable in _COUNTS.items()}
    if not 0 < counts["port"] <= _LAST_PORT:
        raise LaunchError(f"the launcher's {_COUNTS['port']}={counts['port']} must be in 1 .. {_LAST_PORT}")
    launch = Launch(address=environment[_ADDRESS], **counts)
    for name, limit in (("rank", "size"), ("local_rank", "local_size"), ("host", "num_hosts")):
        if counts[name] >= counts[limit]:
            raise LaunchError(
                f"the launcher's {_COUNTS[name]}={counts[name]} must be below {_COUNTS[limit]}={counts[limit]}"
            )
    return launch


def check_size(launch: Launch, asked: int | None) -> None:
    """Raises LaunchError where another number of ranks is asked for than the launcher has started."""
    if asked not in (None, launch.size):
        raise LaunchError(
            f"--tensor-parallel-size {asked}, but the launcher has started {launch.size} ranks (WORLD_SIZE): give "
            f"--tensor-parallel-size {launch.size} or auto, or other slots to the launcher"
        )


def read_secret(environment: Mapping[str, str], num_hosts: int) -> bytes:
    """What ranks prove to each other that they know; nothing on one host, whose users the system tells apart.

    Raises LaunchError where several hosts have none, or one that could be guessed.
    """
    if num_hosts == 1:
        return b""
    secret = environment.get(SECRET_VARIABLE, "")
    if len(secret) < _MIN_SECRET_LENGTH:
        raise LaunchError(
            f"ranks on several hosts need {SECRET_VARIABLE}, the same {_MIN_SECRET_LENGTH} or more characters on "
            "every host: with ssh, write it to .deepspeed_env; with --no_ssh, set it on each host"
        )
    return secret.encode()


def launcher_binds_cores() -> bool:
    """Whether this process may run on other cores than the launcher, which has started it."""
    return hasattr(os, "sched_getaffinity") and os.sched_getaffinity(0) != os.sched_getaffinity(os.getppid())


def _read(environment: Mapping[str, str], variable: str) -> int:
    text = environment[variable]
    if not (text.isascii() and text.isdigit()):
        raise LaunchError(f"the launcher's {variable} must be a number, not {text!r}")
    return int(text)
