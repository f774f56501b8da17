"""A coordinator that was away does not hold its own silence against its peers."""

from distllm.engine.pipeline.coordinator.wakefulness import Wakefulness


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def turn_for(wakefulness: Wakefulness, clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        clock.now_s += 0.05
        wakefulness.turn()


def test_it_has_been_awake_for_as_long_as_it_turned() -> None:
    clock = Clock()
    wakefulness = Wakefulness(clock)
    turn_for(wakefulness, clock, 2.0)
    assert round(wakefulness.awake_s, 2) == 2.0
    clock.now_s += 0.2
    assert round(wakefulness.awake_s, 2) == 2.2, "a turn that is a little late is none that was missed"


def test_after_a_pause_it_has_not_been_awake() -> None:
    clock = Clock()
    wakefulness = Wakefulness(clock)
    turn_for(wakefulness, clock, 2.0)
    clock.now_s += 1.3
    assert wakefulness.awake_s == 0.0, "also before it has turned again"
    wakefulness.turn()
    assert wakefulness.awake_s == 0.0
    turn_for(wakefulness, clock, 0.5)
    assert round(wakefulness.awake_s, 2) == 0.5
