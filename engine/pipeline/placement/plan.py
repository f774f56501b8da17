"""A plan: which peers serve which layers, in the order that activations take; and what is asked of it."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from distllm.engine.interface import BLOCK_SIZE
from distllm.engine.pipeline.placement.measurements import COORDINATOR, PeerId

Objective = Literal["latency", "throughput"]


class Stage(Struct, frozen=True):
    """Layers [begin, end) on one peer."""

    peer_id: PeerId
    begin: int
    end: int

    @property
    def num_layers(self) -> int:
        return self.end - self.begin


class Plan(Struct, frozen=True):
    """Stages that serve every layer once, in order, each peer at most one. Raises ValueError for anything else."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0].begin != 0:
            raise ValueError("a plan begins with layer 0")
        if any(stage.end <= stage.begin for stage in self.stages):
            raise ValueError("every stage has a layer")
        if any(before.end != after.begin for before, after in pairwise(self.stages)):
            raise ValueError("a stage begins where the one before it ends")
        if len({stage.peer_id for stage in self.stages}) < len(self.stages):
            raise ValueError("a peer serves one stage of a plan")

    @property
    def num_layers(self) -> int:
        return self.stages[-1].end

    @property
    def edges(self) -> Iterator[tuple[PeerId, PeerId]]:
        """The legs of a step: from the coordinator through the stages and back to it."""
        return pairwise((COORDINATOR, *(stage.peer_id for stage in self.stages), COORDINATOR))


class Workload(Struct, frozen=True):
    """What plans are predicted for: streams of `prompt_tokens`, then `output_tokens`, each.

    Prefill takes `chunk_tokens` a step; at most `max_in_flight` steps are under way. A plan has room for
    `min_blocks` of KV at least.
    """

    prompt_tokens: int = 512
    output_tokens: int = 256
    chunk_tokens: int = 256
    num_streams: int = 8
    max_in_flight: int = 4
    min_blocks: int = 1

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def num_chunks(self) -> int:
        return -(-self.prompt_tokens // self.chunk_tokens)

    @property
    def blocks_per_stream(self) -> int:
        return -(-(self.prompt_tokens + self.output_tokens) // BLOCK_SIZE)
