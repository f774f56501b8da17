"""A process's place among the ranks of a model: plain values, importable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Membership:
    """One process's place among the ranks of a model, and how they find each other.

    It is number `local_rank` of the `num_local` ranks on host `host`. `meeting_point` is a torch.distributed
    init_method: a file for ranks of one host, the first rank's store (tcp://) for those of several. `name` consists
    of digits and is unique to this run of ranks on this host. All ranks have the same `shares_memory`: whether they
    sum through shared memory.
    """

    rank: int
    size: int
    meeting_point: str
    name: str
    num_local: int
    local_rank: int = 0
    host: int = 0
    device_type: str = "cpu"
    shares_memory: bool = False
