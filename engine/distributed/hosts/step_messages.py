"""A step, and what a rank makes of it, as messages to and from ranks on other hosts."""

from collections.abc import Sequence

from torch import Tensor

from distllm.engine.attention.interface import AttentionBatch
from distllm.engine.batch import StepTensors
from distllm.engine.distributed.hosts.tensor_codec import MalformedTensors, decode_tensors, encode_tensors
from distllm.engine.distributed.step_exchange import RankResult
from distllm.engine.sampling.candidates import Candidates
from distllm.engine.sampling.needed_logits import NeededLogits

_MAX_DIGEST_BYTES = 255


def encode_step(batch: StepTensors) -> list[bytes | memoryview]:
    attention = batch.attention
    return encode_tensors(
        [
            batch.input_ids,
            batch.position_ids,
            attention.query_starts,
            attention.num_computed,
            attention.block_tables,
            attention.slot_mapping,
            batch.needed_rows,
            batch.num_candidates,
            batch.copies,
        ]
    )


def decode_step(message: bytearray) -> StepTensors:
    """Raises MalformedTensors."""
    ids, positions, starts, computed, tables, slots, rows, counts, copies = _expect(9, decode_tensors(message))
    return StepTensors(
        input_ids=ids,
        position_ids=positions,
        attention=AttentionBatch(starts, computed, tables, slots),
        needed_rows=rows,
        num_candidates=counts,
        copies=copies,
    )


def encode_result(result: RankResult) -> list[bytes | memoryview]:
    assert len(result.digest) <= _MAX_DIGEST_BYTES
    logits = result.logits
    tensors = [logits.whole] if logits.best is None else [logits.whole, logits.best.values, logits.best.ids]
    return [bytes([len(result.digest)]), result.digest, *encode_tensors(tensors)]


def decode_result(message: bytearray) -> RankResult:
    """Raises MalformedTensors."""
    num_bytes = 1 + (message[0] if message else 0)
    whole, *listed = decode_tensors(message[num_bytes:])
    best = Candidates(*_expect(2, listed)) if listed else None
    return RankResult(bytes(message[1:num_bytes]), NeededLogits(whole, best))


def _expect(count: int, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(tensors) != count:
        raise MalformedTensors(f"{len(tensors)} tensors where {count} are due")
    return tensors
