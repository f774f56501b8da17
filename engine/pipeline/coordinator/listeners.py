"""Who hears what peers report, beside the list of members itself."""

from collections.abc import Callable
from dataclasses import dataclass

from distllm.engine.pipeline.coordinator.members import Member
from distllm.engine.pipeline.messages import EdgeDown, Loading, Measured, MeasureFailed, Probed, Received, Result
from distllm.engine.pipeline.security.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """`result` takes results, and says what is wrong with one that cannot be; `loading` takes progress.

    `measured` takes what peers find out about themselves and their links, `received` acknowledgements. `has_edge`
    says whether, in an epoch, a peer sends its steps to another.
    """

    result: Callable[[PeerId, Result], str | None]
    loading: Callable[[PeerId, Loading], None]
    measured: Callable[[Member, Measured | MeasureFailed | Probed | EdgeDown], None]
    received: Callable[[PeerId, Received], None]
    has_edge: Callable[[PeerId, str, int], bool]
