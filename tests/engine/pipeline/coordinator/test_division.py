"""Layers are divided evenly; seats stay with their peers, and empty ones go to who has their layers."""

import pytest

from distllm.engine.pipeline.coordinator.division import Layers, Seat, divide_evenly, seat_peers


@pytest.mark.parametrize(("num_layers", "num_stages"), [(1, 1), (6, 2), (7, 3), (80, 9), (5, 5)])
def test_stages_follow_one_another_and_differ_by_a_layer_at_most(num_layers: int, num_stages: int) -> None:
    stages = divide_evenly(num_layers, num_stages)
    assert [begin for begin, _ in stages] == [0, *(end for _, end in stages[:-1])]
    assert stages[-1][1] == num_layers
    lengths = [end - begin for begin, end in stages]
    assert max(lengths) - min(lengths) <= 1


def seats(*peers: str | None) -> list[Seat]:
    return [Seat(layers, peer) for layers, peer in zip(divide_evenly(6, len(peers)), peers, strict=True)]


def nobody(_: str, __: Layers) -> bool:
    return False


def test_first_come_first_seated() -> None:
    assert seat_peers(seats(None, None), ["a", "b", "c"], nobody) == seats("a", "b")


def test_whoever_has_a_seat_keeps_it() -> None:
    assert seat_peers(seats("c", None), ["a", "b", "c"], nobody) == seats("c", "a")


def test_a_lost_seat_goes_to_the_peer_that_has_its_layers() -> None:
    def has_loaded(peer: str, layers: Layers) -> bool:
        return (peer, layers) == ("d", (3, 6))

    assert seat_peers(seats("a", "b"), ["a", "c", "d"], has_loaded) == seats("a", "d")


def test_too_few_peers_are_no_pipeline() -> None:
    assert seat_peers(seats("a", "b"), ["a"], nobody) is None
