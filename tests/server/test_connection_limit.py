"""The longest idle connection makes room; busy ones are left alone."""

from distllm.server.connection_limit import ConnectionLimit


class Connection:
    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def admit(limit: ConnectionLimit, count: int) -> list[Connection]:
    connections = [Connection() for _ in range(count)]
    assert all(map(limit.admit, connections))
    return connections


def test_at_the_limit_the_longest_idle_is_closed() -> None:
    limit = ConnectionLimit(3)
    first, second, third, _ = admit(limit, 4)
    assert [each.is_closed for each in (first, second, third)] == [True, False, False]
    assert limit.num_open == 3


def test_a_busy_connection_is_never_closed_and_is_the_last_to_go_once_idle() -> None:
    limit = ConnectionLimit(2)
    first, second = admit(limit, 2)
    limit.mark_busy(first)
    (third,) = admit(limit, 1)
    assert (first.is_closed, second.is_closed) == (False, True)
    limit.mark_idle(first)
    admit(limit, 1)
    assert (first.is_closed, third.is_closed) == (False, True)


def test_when_all_are_busy_a_new_one_is_not_admitted() -> None:
    limit = ConnectionLimit(1)
    (only,) = admit(limit, 1)
    limit.mark_busy(only)
    assert not limit.admit(Connection())
    limit.forget(only)
    assert limit.admit(Connection())


def test_what_was_closed_to_make_room_stays_forgotten() -> None:
    limit = ConnectionLimit(1)
    (first,) = admit(limit, 1)
    admit(limit, 1)
    limit.mark_busy(first)
    limit.mark_idle(first)
    limit.forget(first)
    assert limit.num_open == 1
