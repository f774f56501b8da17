"""Who is in the cluster: every peer that has a certificate, what it said last, and when."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.coordinator.workload import Workload
from distllm.engine.pipeline.messages import CONTROL, Beat, Endpoint, Keep, Load, StageConfig, ToPeer
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Outbound
from distllm.engine.pipeline.wire.frame import encode_frame
from distllm.engine.quantization.config import QuantizationWish

_FORGIVEN_S = 5.0


@dataclass(slots=True)
class Member:
    """A peer, as the coordinator knows it. `outbound` is its link, None while there is none.

    `loaded` are the stages that this boot of it has in memory, `refused` those that it cannot have, and why.
    `wish` is how it would have layers quantized.
    """

    peer_id: PeerId
    outbound: Outbound | None = None
    boot: str = ""
    endpoint: Endpoint | None = None
    free_bytes: int = 0
    wish: QuantizationWish | None = None
    heard_s: float = 0.0
    busy_s: float = 0.0
    workload: Workload = field(default_factory=Workload)
    loaded: dict[StageConfig, ExecutorInfo] = field(default_factory=dict)
    refused: dict[StageConfig, str] = field(default_factory=dict)
    asked: set[StageConfig] = field(default_factory=set)
    fenced: int = -1
    _trouble: tuple[float, str] | None = None

    @property
    def trouble(self) -> str | None:
        """Why it is no use at present; forgiven after a while."""
        if self._trouble is None or time.monotonic() > self._trouble[0] + _FORGIVEN_S:
            return None
        return self._trouble[1]

    def blame(self, reason: str) -> None:
        self._trouble = (time.monotonic(), reason)

    @property
    def is_connected(self) -> bool:
        return self.outbound is not None and self.endpoint is not None

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.heard_s

    def send(self, message: ToPeer) -> None:
        self.send_frame(b"".join(encode_frame(CONTROL, message)))

    def ask(self, message: Load) -> None:
        """Have a stage loaded; the answer is in `loaded` or `refused` one day."""
        self.asked.add(message.config)
        self.send(message)

    def keep(self, configs: list[StageConfig]) -> None:
        """Have all other stages forgotten."""
        if self.loaded.keys() - set(configs):
            self.loaded = {config: info for config, info in self.loaded.items() if config in configs}
            self.asked &= set(configs)
            self.send(Keep(configs=configs))

    def lose(self, config: StageConfig) -> None:
        """A stage is not loaded any more, by no wish of ours; it may be asked for again."""
        self.loaded.pop(config, None)
        self.asked.discard(config)

    def send_frame(self, frame: bytes) -> None:
        """Lost where there is no link: whoever watches this member finds that out."""
        if self.outbound is not None:
            self.outbound.put_nowait(frame)

    def begin_boot(self, boot: str, endpoint: Endpoint, free_bytes: int) -> None:
        """The peer said hello. What it had before it was started anew is gone."""
        if boot != self.boot:
            self.boot, self.fenced, self._trouble = boot, -1, None
            self.workload = Workload()
            self.loaded.clear()
            self.refused.clear()
        self.asked = set(self.loaded)  # what it was asked for on another link, it may not have heard
        self.endpoint, self.free_bytes = endpoint, free_bytes

    def take_beat(self, beat: Beat) -> None:
        self.busy_s = beat.busy_s
        if beat.free_bytes is not None:
            self.free_bytes = beat.free_bytes
        if beat.boot == self.boot:
            self.workload.note(beat.work, beat.round_trip_s)


class Members:
    """All of them. `changed` is set whenever one says something that may matter to a plan."""

    def __init__(self) -> None:
        self._members: dict[PeerId, Member] = {}
        self.changed = asyncio.Event()

    def __getitem__(self, peer_id: PeerId) -> Member:
        return self._members.setdefault(peer_id, Member(peer_id))

    def connected(self) -> list[Member]:
        """In the order in which they joined."""
        return [member for member in self._members.values() if member.is_connected]

    def heard_since(self, ago_s: float) -> list[Member]:
        """Those who are connected, or were `ago_s` ago."""
        return [it for it in self._members.values() if it.is_connected or (it.boot and it.silent_s < ago_s)]

    async def wait_for_change(self, timeout_s: float) -> None:
        """Return when something changed, or after `timeout_s`."""
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.changed.wait()
