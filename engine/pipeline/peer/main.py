"""The peer's program: `python -m distllm.engine.pipeline.peer.main START`, START being a PeerStart in JSON."""

import asyncio
import logging
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from distllm.engine.config import EngineConfig
from distllm.engine.device import resolve_device
from distllm.engine.factory import num_ranks
from distllm.engine.pipeline.peer.peer import Peer
from distllm.engine.pipeline.peer.start import PeerStart


async def serve(start: PeerStart) -> str:
    """Be a peer until the coordinator dismisses it; why. Raises OSError where its port is taken."""
    peer = Peer(
        start.coordinator,
        Path(start.directory),
        start.here,
        start.weights,
        start.host,
        start.port,
        start.listen or (start.host, start.port),
        start.max_message_bytes,
        start.quantization,
    )
    return await peer.run()


def settle(here: EngineConfig) -> EngineConfig:
    """With a number of ranks. Raises ValueError where there is no device for each of them."""
    size = num_ranks(here)
    for rank in reversed(range(size)):  # the last to be resolved is the one that torch takes
        resolve_device(here.device, rank)
    return replace(here, tensor_parallel_size=size)


def main(argument: str) -> int:
    start = msgspec.json.decode(argument, type=PeerStart)
    logging.basicConfig(level=start.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        start = replace(start, here=settle(start.here))
    except ValueError as error:
        sys.stderr.write(f"distllm: {error}\n")
        return 1
    try:
        reason = asyncio.run(serve(start))
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        sys.stderr.write(f"distllm: this peer cannot listen: {error}; choose another --port or --listen\n")
        return 1
    sys.stderr.write(f"distllm: this peer left the cluster: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
