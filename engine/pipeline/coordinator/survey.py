"""What peers measured of themselves and of their links. Asks them for what is missing, one for links at a time."""

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from distllm.engine.pipeline.coordinator.arithmetic import wished
from distllm.engine.pipeline.coordinator.members import Member, Members
from distllm.engine.pipeline.coordinator.model_sample import ModelSample
from distllm.engine.pipeline.messages import Measure, Measured, MeasureFailed, Probed, ProbeLinks
from distllm.engine.pipeline.placement.measurements import COORDINATOR, Cluster, Link, PeerId, PeerMeasurements
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pool_size import FREE_FRACTION
from distllm.engine.quantization.config import QuantizationConfig

logger = logging.getLogger("distllm.pipeline")

_LOOK_S = 1.0
_PROBE_TIMEOUT_S = 120.0

Edge = tuple[PeerId, PeerId]


@dataclass(slots=True)
class _Peer:
    """Of one boot of a peer. `times` is what it measured, or why it could not."""

    boot: str
    times: ComputeTimes | str | None = None
    free_bytes: int = 0
    asked_on: object = None  # the link that it was asked to measure on
    links: dict[PeerId, Link | str] = field(default_factory=dict)  # that it probed to others, or why it could not
    boots: dict[PeerId, str] = field(default_factory=dict)  # of these others, when it did
    from_coordinator: Link | None = None


class Survey:
    """Knows `members` by what they report. A peer that was started anew is measured anew."""

    def __init__(self, members: Members, model: ModelSample) -> None:
        self._members = members
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

    def take(self, member: Member, message: Measured | MeasureFailed | Probed) -> None:
        """What a peer found."""
        peer = self._peer(member)
        match message:
            case Measured(times=times, free_bytes=free_bytes):
                peer.times, peer.free_bytes = times, free_bytes
                logger.info("%s measured %.3f ms a layer and row", member.peer_id, 1000 * times.decode.at(1))
            case MeasureFailed(reason=reason):
                peer.times = reason
                logger.warning("%s could not time a layer: %s", member.peer_id, reason)
            case Probed(links=links, unreachable=unreachable):
                self._probing = None
                peer.links.update({PeerId(end): reason for end, reason in unreachable.items()})
                for link in links:
                    self._take_link(peer, PeerId(member.peer_id), link)

    def is_settled(self, peer_ids: Collection[str]) -> bool:
        """Whether all is known of these peers that can be."""
        members = [member for member in self._members.connected() if member.peer_id in peer_ids]
        return len(members) == len(peer_ids) and all(
            self._peer(member).times is not None and not self._missing(member, members) for member in members
        )

    def cluster(
        self, peer_ids: Collection[str], quantization: Sequence[QuantizationConfig | None] | None = None
    ) -> Cluster:
        """Those of the peers that are here and measured, and the links between them.

        `quantization` is that of each layer; None where each peer has its layers as it wishes.
        """
        members = {PeerId(it.peer_id): it for it in self._members.connected() if it.peer_id in peer_ids}
        measured = [self._measurements(*peer, quantization is None) for peer in members.items()]
        peers = tuple(sorted((it for it in measured if it is not None), key=lambda it: it.peer_id))
        ends = {peer.peer_id for peer in peers} | {COORDINATOR}
        links = tuple(link for link in self._links(members) if {link.source, link.target} <= ends)
        sizes = self._model.sizes if quantization is None else self._model.sizes_by_layer(quantization)
        return Cluster(sizes, peers, links)

    def unmeasured(self) -> dict[str, str]:
        """Of those that are here, why they cannot be placed."""
        reasons = {}
        for member in self._members.connected():
            times = self._peer(member).times
            if not isinstance(times, ComputeTimes):
                reasons[str(member.peer_id)] = times or "it has not measured itself yet"
        return reasons

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
            if peer.times is None and peer.asked_on is not member.outbound:
                peer.asked_on = member.outbound
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
            if missing := self._missing(member, settled):
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

    def _links(self, members: dict[PeerId, Member]) -> Iterator[Link]:
        for member in members.values():
            peer = self._peer(member)
            if peer.from_coordinator is not None:
                yield peer.from_coordinator
            for link in peer.links.values():
                if isinstance(link, Link):
                    yield link
