"""What it takes to hand the activations of a decode step to another process on this machine, with TLS on both ends.

`python -m benchmarks.hop --serve DIRECTORY` is the other process: it prints its port, and checks and opens every
frame, as a stage does.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from distllm.engine.interface import StepInput
from distllm.engine.pipeline.messages import STEP, StepHeader
from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.identity import PendingIdentity
from distllm.engine.pipeline.security.identity_files import IdentityFiles
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import PeerApp, Reply
from distllm.engine.pipeline.transport.client import Address, Http2Client
from distllm.engine.pipeline.transport.server import Http2Server
from distllm.engine.pipeline.wire.frame import decode_frame, encode_frame

LOOPBACK = "127.0.0.1"
_SENDER, _RECEIVER = PeerId("sender"), PeerId("receiver")
_MAX_BYTES = 64 << 20
_NUM_WARM_UP = 50
_TIMEOUT_S = 10.0
_decode_header = msgspec.msgpack.Decoder(StepHeader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """Milliseconds from encoding a frame to its acknowledgement."""

    num_bytes: int
    p50_ms: float
    p99_ms: float


def measure_hop(num_bytes: int = 64 << 10, num_hops: int = 1000) -> Hop:
    """One after the other."""
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        authority = ClusterAuthority.open(directory / "authority", datetime.now(UTC))
        for peer_id in (_SENDER, _RECEIVER):
            _certify(authority, peer_id, directory / peer_id)
        command = [sys.executable, "-m", "benchmarks.hop", "--serve", str(directory / _RECEIVER)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
            try:
                assert receiver.stdout is not None
                port = int(next(line for line in receiver.stdout if line.strip().isdigit()))
                times_ms = asyncio.run(_send(port, directory / _SENDER, num_bytes, num_hops))
            finally:
                receiver.kill()
    times_ms.sort()
    return Hop(num_bytes=num_bytes, p50_ms=times_ms[num_hops // 2], p99_ms=times_ms[num_hops * 99 // 100])


def _certify(authority: ClusterAuthority, peer_id: PeerId, directory: Path) -> None:
    now, pending = datetime.now(UTC), PendingIdentity.make()
    certificate = authority.issue(pending.csr_pem, peer_id, [LOOPBACK], now)
    IdentityFiles.keep(pending.accept(certificate, authority.certificate_pem, now), directory)


async def _send(port: int, directory: Path, num_bytes: int, num_hops: int) -> list[float]:
    identity = IdentityFiles.current(directory).read()
    client = await Http2Client.open(Address(_RECEIVER, LOOPBACK, port), identity)
    step = msgspec.Raw(msgspec.msgpack.encode(StepInput(0, [])))
    activations = torch.zeros(num_bytes // 2, dtype=torch.bfloat16)
    times_ms: list[float] = []
    try:
        for number in range(_NUM_WARM_UP + num_hops):
            header = StepHeader(epoch=0, number=number, first_stage=0, last_stage=1, is_rebuild=False, step=step)
            began_s = time.perf_counter()
            frame = b"".join(encode_frame(STEP, header, [activations]))
            status, _ = await client.post("/v1/step", frame, _TIMEOUT_S)
            assert status == 200
            times_ms.append(1000 * (time.perf_counter() - began_s))
    finally:
        await client.close()
    return times_ms[_NUM_WARM_UP:]


async def _take(_: PeerId | None, body: bytes) -> Reply:
    decode_frame(body, _MAX_BYTES).header(_decode_header)
    return Reply()


async def _serve(directory: Path) -> None:
    app = PeerApp(_MAX_BYTES, {"/v1/step": _take}, {}, {})
    server = Http2Server(app, LOOPBACK, 0, IdentityFiles.current(directory))
    print(await server.start(), flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hop", description=__doc__)
    parser.add_argument("--serve", type=Path, required=True, metavar="DIRECTORY", help="folder of an identity")
    asyncio.run(_serve(parser.parse_args().serve))
