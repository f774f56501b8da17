"""How a rank and the engine that it joins prove to each other that they know the launch's secret.

    engine -> rank   greeting, nonce
    rank -> engine   rank, nonce, HMAC-SHA256(secret, "rank", both nonces, rank)
    engine -> rank   HMAC-SHA256(secret, "engine", both nonces)

Every message has a fixed size and a time; what is wrong in any way ends the connection.
"""

import hmac
import secrets
import socket
import struct
import time

_GREETING = b"distllm ranks 1\n"
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_RANK = struct.Struct(">I")
TIMEOUT_S = 5.0


class HandshakeError(ConnectionError):
    """The other side is no rank, or no engine, of this launch."""


def admit(connection: socket.socket, secret: bytes, size: int) -> int:
    """The engine's side: which of `size` ranks has come. Raises HandshakeError or OSError."""
    deadline_s = time.monotonic() + TIMEOUT_S
    own = secrets.token_bytes(_NONCE_BYTES)
    connection.settimeout(TIMEOUT_S)
    connection.sendall(_GREETING + own)
    answer = _receive(connection, _RANK.size + _NONCE_BYTES + _PROOF_BYTES, deadline_s)
    number, theirs, proof = _split(answer, _RANK.size, _NONCE_BYTES)
    (rank,) = _RANK.unpack(number)
    if not hmac.compare_digest(proof, _prove(secret, b"rank", own, theirs, number)):
        raise HandshakeError("it does not know the secret")
    if not 0 < rank < size:
        raise HandshakeError(f"it says that it is rank {rank} of {size}")
    connection.sendall(_prove(secret, b"engine", own, theirs))
    connection.settimeout(None)
    return int(rank)


def introduce(connection: socket.socket, secret: bytes, rank: int) -> None:
    """The rank's side, which waits for as long as there is no engine. Raises HandshakeError or OSError."""
    connection.settimeout(None)
    greeting = _receive(connection, len(_GREETING) + _NONCE_BYTES, None)
    if not greeting.startswith(_GREETING):
        raise HandshakeError("it is no engine of this version")
    theirs, own = greeting[len(_GREETING) :], secrets.token_bytes(_NONCE_BYTES)
    number = _RANK.pack(rank)
    connection.sendall(number + own + _prove(secret, b"rank", theirs, own, number))
    proof = _receive(connection, _PROOF_BYTES, time.monotonic() + TIMEOUT_S)
    if not hmac.compare_digest(proof, _prove(secret, b"engine", theirs, own)):
        raise HandshakeError("it does not know the secret")
    connection.settimeout(None)


def _prove(secret: bytes, *parts: bytes) -> bytes:
    return hmac.digest(secret, b"|".join(parts), "sha256")


def _split(message: bytes, *sizes: int) -> list[bytes]:
    """Parts of the given sizes, and the rest."""
    parts = []
    for size in sizes:
        parts.append(message[:size])
        message = message[size:]
    return [*parts, message]


def _receive(connection: socket.socket, num_bytes: int, deadline_s: float | None) -> bytes:
    message = b""
    while len(message) < num_bytes:
        if deadline_s is not None:
            connection.settimeout(max(0.001, deadline_s - time.monotonic()))
        received = connection.recv(num_bytes - len(message))
        if not received:
            raise HandshakeError("it closed the connection")
        message += received
    return message
