"""What peers measured of themselves and of their links. Asks them for what is missing, one for links at a time."""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import inf

from distllm.engine.pipeline.coordinator.arithmetic import wished
from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.model_sample import ModelSample
from distllm.engine.pipeline.messages import EdgeDown, Measure, Measured, MeasureFailed, Probed, ProbeLinks
from distllm.engine.pipeline.placement.measurements import (
    COORDINATOR,
    Cluster,
    EdgeCodec,
    Link,
    PeerId,
    PeerMeasurements,
)
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pipeline.security.peer_id import PeerId as CertifiedId
from distllm.engine.pipeline.wire.codec_choice import CodecCost, choose_codec
from distllm.engine.pipeline.wire.codec_names import PLAIN, CodecName, Compression
from distllm.engine.pool_size import FREE_FRACTION
from distllm.engine.quantization.config import QuantizationConfig

logger = logging.getLogger("distllm.pipeline")

_LOOK_S = 1.0
_LONGEST_PAUSE_S = 600.0
_PROBE_TIMEOUT_S = 120.0
_PROBE_AGAIN_S = (60.0, 3600.0)
"""How long an end that could not be reached is left alone: at first, at most."""


@dataclass(frozen=True, slots=True)
class _Unreachable:
    """No link, and when that is to be tried again, by time.monotonic(); after `pause_s`."""

    pause_s: float
    until_s: float

    @classmethod
    def after(cls, before: "Link | _Unreachable | None") -> "_Unreachable":
        """Found out now, of an end that was known as `before`."""
        first_s, longest_s = _PROBE_AGAIN_S
        pause_s = min(2 * before.pause_s, longest_s) if isinstance(before, _Unreachable) else first_s
        return cls(pause_s, time.monotonic() + pause_s)


@dataclass(slots=True)
class _Peer:
    """Of one boot of a peer. `times` is what it measured, or why it could not, and it is asked again later."""

    boot: str
    times: ComputeTimes | str | None = None
    free_bytes: int = 0
    asked_on: object = None  # the link that it was asked to measure on
    ask_again_s: float = inf
    num_failures: int = 0
    codecs: Mapping[CodecName, CodecCost] = field(default_factory=dict)
    links: dict[PeerId, Link | _Unreachable] = field(default_factory=dict)  # to others
    boots: dict[PeerId, str] = field(default_factory=dict)  # of these others, when it did
    from_coordinator: Link | None = None


class Survey:
    """Knows `members` by what they report. A peer that was started anew is measured anew."""

    def __init__(self, members: Members, model: ModelSample, first_pause_s: float = 30.0) -> None:
        self._members = members
        self._first_pause_s = first_pause_s
        self._model = model
        self._peers: dict[str, _Peer] = {}
        self._probing: tuple[Member, object, float] | None = None  # who, on which link, until when

    async def run(self) -> None:
        """Ask whoever is here for what is missing, for ever."""
        while True:
            self.ask()
            await self._members.wait_for_change(_LOOK_S)

    def ask(self) -> None:
        """For what is missing, but no peer for links while another one probes."""
        self._ask_for_times()
        self._ask_for_links()

    def take(self, member: Member, message: Measured | MeasureFailed | Probed | EdgeDown) -> None:
        """What a peer found."""
        peer = self._peer(member)
        match message:
            case Measured(times=times, free_bytes=free_bytes):
                peer.times, peer.free_bytes, peer.codecs = times, free_bytes, message.codecs
                logger.info("%s measured %.3f ms a layer and row", member.peer_id, 1000 * times.decode.at(1))
            case MeasureFailed(reason=reason):
                peer.times = reason
                pause_s = min(self._first_pause_s * 2**peer.num_failures, _LONGEST_PAUSE_S)
                peer.num_failures += 1
                peer.ask_again_s = time.monotonic() + pause_s
                logger.warning("%s could not time a layer: %s", member.peer_id, reason)
            case Probed(links=links, unreachable=unreachable):
                self._probing = None
                ends = map(PeerId, unreachable)
                peer.links.update({end: _Unreachable.after(peer.links.get(end)) for end in ends})
                for link in links:
                    self._take_link(peer, PeerId(member.peer_id), link)
            case EdgeDown(successor=successor):
                peer.boots[PeerId(successor)] = self._members[CertifiedId(successor)].boot
                peer.links[PeerId(successor)] = _Unreachable.after(None)

    def reaches(self, source: Member, target: Member) -> bool:
        """Whether a peer can send to another, as far as that is not known to be otherwise."""
        return not isinstance(self._link(source, target), _Unreachable)

    def link(self, source: Member, target: Member) -> Link | None:
        """From one peer straight to another; None where there is none, or it is not measured."""
        known = self._link(source, target)
        return known if isinstance(known, Link) else None

    def goodput(self, source: Member, target: Member) -> float | None:
        """Bytes/s from one peer to another, where need be through the coordinator; None where that is not known."""
        match self._link(source, target):
            case Link(bytes_per_s=bytes_per_s):
                return bytes_per_s
            case _Unreachable():
                up, down = self._peer(source).links.get(COORDINATOR), self._peer(target).from_coordinator
                if isinstance(up, Link) and down is not None:
                    return 1 / (1 / up.bytes_per_s + 1 / down.bytes_per_s)
        return None

    def codec_costs(self, source: Member, target: Member) -> Mapping[CodecName, CodecCost]:
        """Of the codecs that both have measured: encoded at one, decoded at the other."""
        encoding, decoding = self._peer(source).codecs, self._peer(target).codecs
        return {
            name: replace(cost, decode_rows_per_s=decoding[name].decode_rows_per_s)
            for name, cost in encoding.items()
            if name in decoding
        }

    def codec(self, source: Member, target: Member, compression: Compression) -> CodecName:
        """In which activations had better go from one peer to another, as far as it is measured what that costs."""
        if compression != "auto":
            return compression
        goodput, costs = self.goodput(source, target), self.codec_costs(source, target)
        return PLAIN if goodput is None or PLAIN not in costs else choose_codec(costs.keys(), goodput, costs)

    def is_settled(self, peer_ids: Collection[str]) -> bool:
        """Whether all is known of these peers that can be."""
        members = [member for member in self._members.connected() if member.peer_id in peer_ids]
        return len(members) == len(peer_ids) and all(
            self._peer(member).times is not None and not self._missing(member, members) for member in members
        )

    def cluster(
        self,
        peer_ids: Collection[str],
        quantization: Sequence[QuantizationConfig | None] | None = None,
        compression: Compression = PLAIN,
    ) -> Cluster:
        """Those of the peers that are here and measured, the links between them, and how they would use those.

        `quantization` is that of each layer; None where each peer has its layers as it wishes.
        """
        members = {PeerId(it.peer_id): it for it in self._members.connected() if it.peer_id in peer_ids}
        measured = [self._measurements(*peer, quantization is None) for peer in members.items()]
        peers = tuple(sorted((it for it in measured if it is not None), key=lambda it: it.peer_id))
        ends = {peer.peer_id for peer in peers} | {COORDINATOR}
        links = tuple(link for link in self._links(members) if {link.source, link.target} <= ends)
        sizes = self._model.sizes if quantization is None else self._model.sizes_by_layer(quantization)
        codecs = tuple(self._codecs([members[peer.peer_id] for peer in peers], compression))
        return Cluster(sizes, peers, links, codecs)

    def unmeasured(self) -> dict[str, str]:
        """Of those that are here, why they cannot be placed."""
        reasons = {}
        for member in self._members.connected():
            times = self._peer(member).times
            if not isinstance(times, ComputeTimes):
                reasons[str(member.peer_id)] = times or "it has not measured itself yet"
        return reasons

    def _link(self, source: Member, target: Member) -> Link | _Unreachable | None:
        """None where it is not known of this boot of the target."""
        peer, end = self._peer(source), PeerId(target.peer_id)
        return peer.links.get(end) if peer.boots.get(end) == target.boot else None

    def _peer(self, member: Member) -> _Peer:
        known = self._peers.get(member.peer_id)
        if known is None or known.boot != member.boot:
            known = self._peers[member.peer_id] = _Peer(member.boot)
        return known

    def _take_link(self, peer: _Peer, peer_id: PeerId, link: Link) -> None:
        """Links that a peer has no part in are not its to tell."""
        if (link.source, link.target) == (COORDINATOR, peer_id):
            peer.from_coordinator = link
        elif link.source == peer_id:
            peer.links[link.target] = link

    def _ask_for_times(self) -> None:
        for member in self._members.connected():
            peer = self._peer(member)
            is_asked = peer.asked_on is member.outbound and time.monotonic() < peer.ask_again_s
            if not isinstance(peer.times, ComputeTimes) and not is_asked:
                peer.asked_on, peer.ask_again_s = member.outbound, inf
                member.send(Measure(sample=self._model.sample_of(self._wished(member))))

    def _ask_for_links(self) -> None:
        if self._probing is not None:
            prober, outbound, until_s = self._probing
            if prober.outbound is outbound and time.monotonic() < until_s:
                return
            self._probing = None
        members = self._members.connected()
        settled = [member for member in members if self._peer(member).times is not None]
        for member in settled:
            if missing := self._missing(member, settled) or self._doubtful(member, settled):
                self._ask(member, missing)
                return

    def _ask(self, member: Member, missing: list[Member | None]) -> None:
        peer = self._peer(member)
        others = [other for other in missing if other is not None and other.endpoint is not None]
        peer.boots.update({PeerId(other.peer_id): other.boot for other in others})
        self._probing = (member, member.outbound, time.monotonic() + _PROBE_TIMEOUT_S)
        endpoints = tuple(other.endpoint for other in others if other.endpoint is not None)
        member.send(ProbeLinks(to_coordinator=None in missing, to_peers=endpoints))

    def _missing(self, member: Member, members: list[Member]) -> list[Member | None]:
        """To which of these it has no link yet; None is the coordinator."""
        peer = self._peer(member)
        missing: list[Member | None] = [
            other
            for other in members
            if other is not member
            and (PeerId(other.peer_id) not in peer.links or peer.boots.get(PeerId(other.peer_id)) != other.boot)
        ]
        return missing if COORDINATOR in peer.links else [None, *missing]

    def _doubtful(self, member: Member, members: list[Member]) -> list[Member | None]:
        """Which of these it could not reach some time ago, and may now."""
        now_s = time.monotonic()
        links = ((other, self._link(member, other)) for other in members)
        return [other for other, link in links if isinstance(link, _Unreachable) and link.until_s <= now_s]

    def _wished(self, member: Member) -> QuantizationConfig | None:
        return wished(member.wish, self._model.whole.quantization)

    def _measurements(self, peer_id: PeerId, member: Member, has_its_wish: bool) -> PeerMeasurements | None:
        peer = self._peer(member)
        times = peer.times
        if not isinstance(times, ComputeTimes):
            return None
        usable_bytes = int(FREE_FRACTION * peer.free_bytes) - self._model.activation_bytes
        return PeerMeasurements(
            peer_id=peer_id,
            decode=times.decode,
            head=times.head,
            prefill_s=times.prefill_s,
            free_bytes=max(0, usable_bytes),
            kv_token_bytes=self._model.kv_token_bytes,
            model=self._model.sizes_of(self._wished(member)) if has_its_wish and member.wish else None,
        )

    def _codecs(self, members: Sequence[Member], compression: Compression) -> Iterator[EdgeCodec]:
        """Of all ways between two of them on which activations would not go as they are."""
        for source, target in permutations(members, 2):
            name = self.codec(source, target, compression)
            cost = self.codec_costs(source, target).get(name)
            if name != PLAIN and cost is not None:
                ends = PeerId(source.peer_id), PeerId(target.peer_id)
                yield EdgeCodec(*ends, name, cost.bytes_per_token, cost.coding_s)

    def _links(self, members: dict[PeerId, Member]) -> Iterator[Link]:
        for member in members.values():
            peer = self._peer(member)
            if peer.from_coordinator is not None:
                yield peer.from_coordinator
            for link in peer.links.values():
                if isinstance(link, Link):
                    yield link
