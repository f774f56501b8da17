"""A stage of the pipeline, as the coordinator knows it, and what stages are together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.messages import StageConfig
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.wire.codec_names import CodecName


@dataclass(frozen=True, slots=True)
class Stage:
    """`boot` tells whether its peer still is the process that it was; `info` is what that made of the layers."""

    config: StageConfig
    peer_id: PeerId
    boot: str
    info: ExecutorInfo = field(compare=False)


def merge(infos: Sequence[ExecutorInfo], codecs: Sequence[CodecName] = ()) -> ExecutorInfo:
    """What an executor over these stages tells of itself, between which activations travel in `codecs`."""
    first = infos[0]
    numerics = list(dict.fromkeys(info.numerics for info in infos))
    lossy = [f"in {codec}" for codec in dict.fromkeys(codecs) if codec != "none"]
    return replace(
        first,
        num_blocks=min(info.num_blocks for info in infos),
        weight_bytes=sum(info.weight_bytes for info in infos),
        kv_block_bytes=sum(info.kv_block_bytes for info in infos),
        load_s=max(info.load_s for info in infos),
        numerics="|".join([*(numerics if len(numerics) == 1 else (info.numerics for info in infos)), *lossy]),
        num_ranks=sum(info.num_ranks for info in infos),
    )
