"""How steps come to each stage: straight from the stage before or through the coordinator, and in which codec."""

from collections.abc import Sequence
from dataclasses import dataclass

from distllm.engine.pipeline.coordinator.members import Members
from distllm.engine.pipeline.coordinator.stage import Stage
from distllm.engine.pipeline.coordinator.survey import Survey
from distllm.engine.pipeline.wire.codec_names import PLAIN, CodecName, Compression


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


def _lossy_boundaries(stages: Sequence[Stage], routes: Sequence[Route]) -> dict[int, CodecName]:
    pairs = zip(stages, routes, strict=True)
    return {stage.config.begin: route.codec for stage, route in pairs if route.codec != PLAIN}


def _in_words(boundaries: dict[int, CodecName]) -> str:
    return ", ".join(f"before layer {layer} in {codec}" for layer, codec in boundaries.items()) or "nowhere"


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
        self._lossy: dict[int, CodecName] | None = None  # by the layer that they come to, of those that serve

    def of(self, stages: Sequence[Stage]) -> list[Route]:
        """One for each stage."""
        return [self._route(stages[number - 1] if number else None, stage) for number, stage in enumerate(stages)]

    def settle(self, stages: Sequence[Stage], routes: Sequence[Route]) -> str | None:
        """They serve. In words, if activations lose precision elsewhere than before, which changes tokens' bits."""
        before, self._lossy = self._lossy, _lossy_boundaries(stages, routes)
        if before is None or before == self._lossy:
            return None
        return (
            f"activations lose precision elsewhere: now {_in_words(self._lossy)}, until now {_in_words(before)}; "
            "from here on tokens are the same up to rounding"
        )

    def _route(self, source: Stage | None, target: Stage) -> Route:
        member = self._members[target.peer_id]
        if source is None:
            return Route(link=member.num_links)
        is_direct = self._survey.reaches(self._members[source.peer_id], member)
        return Route(self._codec(source, target), None if is_direct else member.num_links)

    def _codec(self, source: Stage, target: Stage) -> CodecName:
        boundary = target.config.begin
        if boundary not in self._codecs:
            ends = self._members[source.peer_id], self._members[target.peer_id]
            self._codecs[boundary] = self._survey.codec(*ends, self._compression)
        return self._codecs[boundary]
