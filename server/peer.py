"""`distllm peer`: joins the cluster if need be, and becomes the peer's program."""

import argparse
import asyncio
import logging
import os
import re
import socket
import sys
from pathlib import Path

import msgspec

from distllm.engine.byte_size import parse_byte_size
from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.hub import ModelNotFound, resolve
from distllm.engine.offload.errors import OffloadError, check_offload
from distllm.engine.pipeline.peer.joining import join
from distllm.engine.pipeline.peer.start import PeerStart
from distllm.engine.pipeline.security.encryption import read_encryption
from distllm.engine.pipeline.security.host import is_loopback
from distllm.engine.pipeline.security.identity import InvalidIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles, NoIdentity
from distllm.engine.pipeline.security.join_token import JoinRefused, JoinToken
from distllm.engine.pipeline.security.peer_id import COORDINATOR
from distllm.engine.pipeline.security.state_dir import ClusterStateError, default_peer_dir
from distllm.engine.pipeline.transport.client import Address, Unreachable
from distllm.engine.pipeline.weights.folders import WeightFolders, default_cache_dir
from distllm.engine.python_command import python_command
from distllm.server.config import InvalidSettings
from distllm.server.peer_lock import held_alone

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_MAX_NAME_LEN = 40
_RETRY_S = 1.0
_CANNOT_START = (
    JoinRefused,
    Unreachable,
    InvalidIdentity,
    NoIdentity,
    ClusterStateError,
    ModelNotFound,
    CheckpointError,
    OSError,
)


def run_peer(arguments: argparse.Namespace) -> int:
    """Does not return once this machine has joined: this process becomes the peer's. Else the exit status."""
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    coordinator = Address(COORDINATOR, *parse_address("--join", arguments.join))
    listen = None if arguments.listen is None else parse_address("--listen", arguments.listen)
    cache_limit_bytes = (
        None if arguments.cache_limit is None else _parse_size("--cache-limit", arguments.cache_limit)
    )
    try:
        here = engine_config(arguments)
    except OffloadError as error:
        raise InvalidSettings(str(error)) from None
    directory = default_peer_dir() if arguments.state is None else arguments.state.expanduser()
    try:
        with held_alone(directory):
            return _join_and_run(directory, arguments, coordinator, listen, cache_limit_bytes, here)
    except _CANNOT_START as error:
        return _complain(str(error))


def _join_and_run(
    directory: Path,
    arguments: argparse.Namespace,
    coordinator: Address,
    listen: tuple[str, int] | None,
    cache_limit_bytes: int | None,
    here: EngineConfig,
) -> int:
    """The same of a peer whose state is in `directory`. Raises any of `_CANNOT_START`, or InvalidSettings."""
    host = arguments.host or own_address(coordinator)
    weights = _weight_folders(arguments.model, arguments.cache, cache_limit_bytes, directory)
    is_encrypted = _is_encrypted(arguments.token, directory)
    if not (is_encrypted or arguments.allow_plaintext):
        _check_loopback({"--join": coordinator.host, "--host": host, "--listen": listen[0] if listen else host})
    if arguments.token is not None:
        name = peer_name(arguments.name or socket.gethostname())
        asyncio.run(_join(coordinator, arguments.token, name, [host], directory))
    IdentityFiles.current(directory).read()
    start = PeerStart(
        coordinator=coordinator,
        directory=str(directory.absolute()),
        here=here,
        quantization=arguments.quantization,
        weights=weights,
        host=host,
        port=arguments.port,
        listen=listen,
        log_level=arguments.log_level,
    )
    sys.stdout.flush()
    command = python_command("distllm.engine.pipeline.peer.main", msgspec.json.encode(start).decode())
    return os.execv(command[0], command)


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    """What stages run on here, without a model. Raises InvalidSettings or OffloadError."""
    for name in ("offload_dir", "weights_memory"):
        if arguments.offload == "none" and getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InvalidSettings(f"{flag} says how to offload: give --offload disk or cpu as well")
    for name in ("kv_cache_memory", "weights_memory", "rank_timeout_s"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InvalidSettings(f"--{name.replace('_', '-')} must be more than 0, not {value:g}")
    config = EngineConfig(
        model="",
        device=arguments.device,
        num_threads=arguments.num_threads,
        kv_cache_bytes=_gib_to_bytes(arguments.kv_cache_memory),
        tensor_parallel_size=num_ranks(arguments.tensor_parallel_size),
        rank_timeout_s=arguments.rank_timeout_s,
        offload=arguments.offload,
        offload_dir=None if arguments.offload_dir is None else str(arguments.offload_dir.absolute()),
        weights_bytes=_gib_to_bytes(arguments.weights_memory),
    )
    check_offload(config, config.device)
    return config


def num_ranks(text: str) -> int | None:
    """Of --tensor-parallel-size; None for auto. Raises InvalidSettings."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InvalidSettings(f"--tensor-parallel-size must be auto or a number from 1, not {text!r}")
    return int(text)


def _gib_to_bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _weight_folders(
    model: str | None, cache: Path | None, cache_limit_bytes: int | None, state: Path
) -> WeightFolders:
    """Where weights come from, or go to. Raises ModelNotFound or ClusterStateError."""
    return WeightFolders(
        copy=None if model is None else str(resolve(model).absolute()),
        cache=str((default_cache_dir() if cache is None else cache.expanduser()).absolute()),
        hashes=str((state / "hashes").absolute()),
        cache_limit_bytes=cache_limit_bytes,
    )


def _is_encrypted(token: str | None, directory: Path) -> bool:
    """Whether to speak TLS: as the token says, or the one did that was joined with. Raises JoinRefused."""
    return read_encryption(directory) if token is None else JoinToken.parse(token).is_encrypted


def _check_loopback(hosts: dict[str, str]) -> None:
    """Of a peer without encryption. Raises InvalidSettings."""
    for flag, host in hosts.items():
        if not is_loopback(host):
            raise InvalidSettings(
                f"{flag} {host}: this coordinator does not encrypt (network.encryption: false), so anyone on the "
                "way could read and change prompts and answers: use 127.0.0.1, or insist with --allow-plaintext"
            )


async def _join(coordinator: Address, token: str, name: str, hosts: list[str], directory: Path) -> None:
    """Join, as soon as the coordinator is there. Raises as `join` does, but for Unreachable."""
    has_complained = False
    while True:
        try:
            await join(coordinator, token, name, hosts, directory)
            return
        except Unreachable as error:
            if not has_complained:
                sys.stderr.write(
                    f"distllm: {error}; trying again until it can. If it is running, check the port of --join: "
                    "its log says at which peers may join\n"
                )
            has_complained = True
        await asyncio.sleep(_RETRY_S)


def parse_address(flag: str, text: str) -> tuple[str, int]:
    """HOST:PORT that a flag gives. Raises InvalidSettings."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidSettings(f"{flag} must be HOST:PORT, such as gpu-1:5555, not {text!r}")
    return host.strip("[]"), int(port)


def _parse_size(flag: str, text: str) -> int:
    """An amount that a flag gives. Raises InvalidSettings."""
    try:
        return parse_byte_size(text)
    except ValueError as error:
        raise InvalidSettings(f"{flag} {error}") from None


def own_address(coordinator: Address) -> str:
    """The address of this machine towards the coordinator. Raises OSError where there is no way there."""
    try:
        ((family, *_, place), *_) = socket.getaddrinfo(coordinator.host, coordinator.port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise OSError(
            f"--join: {coordinator.host} cannot be looked up: {error.strerror}; is it mistyped? An IP address does "
            "as well"
        ) from None
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


def peer_name(text: str) -> str:
    """A text as part of a peer's id."""
    name = _NOT_IN_NAMES.sub("-", text.lower())[:_MAX_NAME_LEN].strip("-")
    return name or "peer"


def _complain(reason: str) -> int:
    sys.stderr.write(f"distllm: {reason}\n")
    return 1
