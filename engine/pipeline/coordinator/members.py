"""Who is in the cluster: every peer that has a certificate, what it said last, and when."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from distllm.engine.interface import ExecutorInfo
from distllm.engine.pipeline.coordinator.refusals import Refusals
from distllm.engine.pipeline.coordinator.standing import Standing
from distllm.engine.pipeline.coordinator.workload import Workload
from distllm.engine.pipeline.messages import CONTROL, Beat, Dismiss, Endpoint, Keep, Load, StageConfig, ToPeer
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.app import Outbound
from distllm.engine.pipeline.transport.bulk import is_bulk
from distllm.engine.pipeline.wire.frame import encode_frame
from distllm.engine.quantization.config import QuantizationWish

_ASK_AGAIN_S = 60.0


@dataclass(slots=True)
class Member:
    """A peer, as the coordinator knows it. `outbound` is its link, None while there is none.

    It has had `num_links`. `bulk` is beside the link, for what messages must not wait for.
    `loaded` are the stages that this boot of it has in memory, `refusals` those that it cannot have. `asked` is the
    memory that was free when it was asked for a stage. `wish` is how it would have layers quantized.
    """

    peer_id: PeerId
    outbound: Outbound | None = None
    bulk: Outbound | None = None
    num_links: int = 0
    boot: str = ""
    endpoint: Endpoint | None = None
    free_bytes: int = 0
    wish: QuantizationWish | None = None
    heard_s: float = 0.0
    busy_s: float = 0.0
    workload: Workload = field(default_factory=Workload)
    loaded: dict[StageConfig, ExecutorInfo] = field(default_factory=dict)
    refusals: Refusals = field(default_factory=Refusals)
    asked: dict[StageConfig, int] = field(default_factory=dict)
    fenced: int = -1
    standing: Standing = field(default_factory=Standing)
    _ask_again_s: dict[StageConfig, float] = field(default_factory=dict)

    @property
    def trouble(self) -> str | None:
        """Why it is no use at present; forgiven after a while."""
        return self.standing.trouble

    def blame(self, reason: str) -> None:
        self.standing.blame(reason)

    @property
    def is_connected(self) -> bool:
        return self.outbound is not None and self.endpoint is not None

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.heard_s

    def send(self, message: ToPeer) -> None:
        self.send_frame(b"".join(encode_frame(CONTROL, message)))

    def have_loaded(self, config: StageConfig) -> None:
        """Ask for a stage, unless it was asked or refused it; the answer is in `loaded` or `refusals` one day.

        It is asked again after a while: an answer may be lost, and a peer that has the stage says so at once.
        """
        now_s = time.monotonic()
        is_asked = config in self.asked and (config in self.loaded or now_s < self._ask_again_s.get(config, 0.0))
        if not is_asked and self.refusals.reason(config) is None:
            self.asked[config] = self.free_bytes
            self._ask_again_s[config] = now_s + _ASK_AGAIN_S
            self.send(Load(config=config))

    def refuse(self, config: StageConfig, reason: str) -> None:
        """The peer cannot load a stage. It is asked again where that may have changed."""
        self.refusals.note(config, reason, self.asked.pop(config, self.free_bytes))

    def keep(self, configs: list[StageConfig]) -> None:
        """Have all other stages forgotten."""
        if self.loaded.keys() - set(configs):
            self.loaded = {config: info for config, info in self.loaded.items() if config in configs}
            self.asked = {config: free for config, free in self.asked.items() if config in configs}
            self.send(Keep(configs=configs))

    def lose(self, config: StageConfig) -> None:
        """A stage is not loaded any more, by no wish of ours; it may be asked for again."""
        self.loaded.pop(config, None)
        self.asked.pop(config, None)

    def send_frame(self, frame: bytes) -> None:
        """Lost where there is no link: whoever watches this member finds that out."""
        if self.outbound is not None:
            self.outbound.put_nowait(frame)

    def send_step(self, frame: bytes) -> None:
        """The same of steps, which may be large."""
        if self.bulk is not None and is_bulk(frame):
            self.bulk.put_nowait(frame)
        else:
            self.send_frame(frame)

    def begin_link(self) -> Outbound:
        """A link, which takes the place of one that has broken unseen."""
        self.end_link()
        self.outbound = asyncio.Queue()
        self.num_links += 1
        self.heard_s = time.monotonic()
        return self.outbound

    def begin_bulk(self) -> Outbound:
        """What goes beside the link."""
        if self.bulk is not None:
            self.bulk.put_nowait(None)
        self.bulk = asyncio.Queue()
        return self.bulk

    def end_link(self) -> None:
        """Have the peer connect anew. What is under way to it may be lost."""
        for outbound in (self.outbound, self.bulk):
            if outbound is not None:
                outbound.put_nowait(None)
        self.outbound = self.bulk = self.endpoint = None

    def dismiss(self, reason: str) -> None:
        """Have it leave the cluster, and end its link."""
        self.send(Dismiss(reason=reason))
        self.end_link()

    def begin_boot(self, boot: str, endpoint: Endpoint, free_bytes: int) -> None:
        """The peer said hello. What it had before it was started anew is gone."""
        if boot != self.boot:
            self.boot, self.fenced, self.standing = boot, -1, Standing()
            self.workload = Workload()
            self.loaded.clear()
            self.refusals = Refusals()
        # What it was asked for on another link, it may not have heard.
        self.asked = dict.fromkeys(self.loaded, free_bytes)
        self.endpoint, self.free_bytes = endpoint, free_bytes

    def take_beat(self, beat: Beat) -> None:
        self.busy_s = beat.busy_s
        if beat.free_bytes is not None:
            self.free_bytes = beat.free_bytes
            self.refusals.note_free(beat.free_bytes)
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
