"""How steps come to each stage: straight from the stage before or through the coordinator, and in which codec."""

from collections.abc import Sequence
from dataclasses import dataclass

from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.wire.codec_choice import choose_codec
from distllm.engine.pipeline.wire.codec_names import CodecName, Compression


@dataclass(frozen=True, slots=True)
class Route:
    """To one stage. `link` is which link of its peer the coordinator sends its steps down, None where it does not.

    What was under way on another link may be lost, so an epoch lasts no longer than its routes do.
    """

    codec: CodecName = "none"
    link: int | None = None

    @property
    def is_direct(self) -> bool:
        return self.link is None


def chain_of(stages: Sequence[Stage], routes: Sequence[Route]) -> str:
    """Peers and their layers in a line, with how activations go between them where that is not as they are."""
    links: list[str] = []
    for number, (stage, route) in enumerate(zip(stages, routes, strict=True)):
        codec = [] if route.codec == "none" else [f"in {route.codec}"]
        if number and (way := [*([] if route.is_direct else ["relayed"]), *codec]):
            links.append(", ".join(way))
        links.append(f"{stage.peer_id} [{stage.config.begin}, {stage.config.end})")
    return " -> ".join(links)


class Routes:
    """Knows from `survey` who reaches whom. The codec of a boundary between layers never changes.

    So a peer that takes another's place is sent the bits that the other was sent. Where the model is divided anew
    its boundaries move: with a codec that loses precision, tokens from then on are the same up to rounding only.
    """

    def __init__(self, members: Members, survey: Survey, compression: Compression) -> None:
        self._members = members
        self._survey = survey
        self._compression = compression
        self._codecs: dict[int, CodecName] = {}

    def of(self, stages: Sequence[Stage]) -> list[Route]:
        """One for each stage."""
        return [self._route(stages[number - 1] if number else None, stage) for number, stage in enumerate(stages)]

    def _route(self, source: Stage | None, target: Stage) -> Route:
        member = self._members[target.peer_id]
        if source is None:
            return Route(link=member.num_links)
        is_direct = self._survey.reaches(self._members[source.peer_id], member)
        return Route(self._codec(source, target), None if is_direct else member.num_links)

    def _codec(self, source: Stage, target: Stage) -> CodecName:
        if self._compression != "auto":
            return self._compression
        boundary = target.config.begin
        if boundary not in self._codecs:
            self._codecs[boundary] = self._fastest(source, target)
        return self._codecs[boundary]

    def _fastest(self, source: Stage, target: Stage) -> CodecName:
        """As far as it is measured what they cost there, else none."""
        ends = self._members[source.peer_id], self._members[target.peer_id]
        goodput, costs = self._survey.goodput(*ends), self._survey.codec_costs(*ends)
        return "none" if goodput is None or "none" not in costs else choose_codec(costs.keys(), goodput, costs)
