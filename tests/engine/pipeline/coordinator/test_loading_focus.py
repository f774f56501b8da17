"""Progress of several peers is shown of one at a time."""

from distllm.engine.pipeline.coordinator.loading_focus import LoadingFocus
from distllm.engine.pipeline.messages import Loading
from distllm.engine.pipeline.security.peer_id import PeerId
from tests.engine.pipeline.weights.machines import stage_config

ONE, OTHER = PeerId("peer-1"), PeerId("peer-2")


def loading(activity: str, done: float) -> Loading:
    return Loading(config=stage_config("0" * 64, 0, 1), activity=activity, done=done)


def test_it_stays_with_a_peer_until_that_is_done() -> None:
    told: list[tuple[str, float]] = []
    focus = LoadingFocus(lambda activity, done: told.append((activity, done)))
    focus(ONE, loading("fetching", 0.0))
    focus(OTHER, loading("fetching", 0.5))
    focus(ONE, loading("fetching", 1.0))
    focus(OTHER, loading("fetching", 0.7))
    focus(ONE, loading("packing", 0.1))
    assert told == [("peer-1: fetching", 0.0), ("peer-1: fetching", 1.0), ("peer-2: fetching", 0.7)]


def test_it_leaves_a_peer_that_is_silent() -> None:
    told: list[str] = []
    focus = LoadingFocus(lambda activity, _: told.append(activity), silence_s=-1.0)
    focus(ONE, loading("fetching", 0.0))
    focus(OTHER, loading("fetching", 0.5))
    assert told == ["peer-1: fetching", "peer-2: fetching"]
