"""Chooses how layers are read from a disk: plainly, or by DeepSpeed's asynchronous I/O where that is faster."""

import logging
import time

from distllm.engine.offload.deepspeed_aio import AioUnavailable, open_aio
from distllm.engine.offload.disk_file import DiskFile
from distllm.engine.offload.host_buffer import host_buffer
from distllm.engine.offload.readers import PlainReader, Reader

logger = logging.getLogger("distllm.engine")

_SAMPLE_BYTES = 32 << 20  # a process short of memory has room for it
_ROUNDS = 3
_MIN_FILE_BYTES = 64 << 20
"""Below it a step's reads take less time than the choice is worth."""


def choose_reader(file: DiskFile) -> Reader:
    """The faster reader on the beginning of `file`, each at its best of a few rounds in turn."""
    plain = PlainReader(file)
    if file.num_bytes < _MIN_FILE_BYTES:
        return plain
    aio = open_aio(file)
    if isinstance(aio, AioUnavailable):
        logger.info("offloaded layers are read without DeepSpeed's asynchronous I/O: %s", aio.reason)
        return plain
    readers: tuple[Reader, Reader] = (plain, aio)
    num_bytes = min(file.num_bytes, _SAMPLE_BYTES)
    buffer = host_buffer(num_bytes).host
    rounds = [[_rate(reader, buffer) for reader in readers] for _ in range(_ROUNDS)]
    plain_rate, aio_rate = (max(rates) for rates in zip(*rounds, strict=True))
    logger.info("the disk gives %.2f GB/s by %s, %.2f by %s", plain_rate, plain.name, aio_rate, aio.name)
    faster, slower = readers if plain_rate >= aio_rate else readers[::-1]
    slower.close()
    return faster


def _rate(reader: Reader, buffer: memoryview) -> float:
    """Gigabytes a second."""
    began_s = time.perf_counter()
    reader.read(buffer, 0)
    return len(buffer) / (time.perf_counter() - began_s) / 1e9
