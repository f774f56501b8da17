"""Machines for a cluster, each in a network namespace of its own and linked with every other."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import combinations

from benchmarks.link import CLEAR, Conditions
from benchmarks.namespaces import Namespace
from benchmarks.packet_link import PacketDirection, PacketLink


class Machines:
    """Get them from `linked_machines`. All that one sends another goes through one direction of a link."""

    def __init__(
        self, namespaces: dict[str, Namespace], directions: dict[tuple[str, str], PacketDirection]
    ) -> None:
        self._namespaces = namespaces
        self._directions = directions

    def __getitem__(self, name: str) -> Namespace:
        return self._namespaces[name]

    def direction(self, source: str, target: str) -> PacketDirection:
        return self._directions[source, target]

    def directions(self) -> list[PacketDirection]:
        return list(self._directions.values())

    def from_machine(self, name: str) -> list[PacketDirection]:
        """All that it sends."""
        return [direction for (source, _), direction in self._directions.items() if source == name]

    def to_machine(self, name: str) -> list[PacketDirection]:
        """All that is sent to it."""
        return [direction for (_, target), direction in self._directions.items() if target == name]


@contextmanager
def linked_machines(names: Sequence[str], conditions: Conditions = CLEAR) -> Iterator[Machines]:
    """All links are under `conditions`, each losing other packets. Raises NoNamespaces."""
    with ExitStack() as stack:
        namespaces = {
            name: stack.enter_context(closing(Namespace(f"10.8.0.{number}")))
            for number, name in enumerate(names, 1)
        }
        directions = {}
        for number, (near, far) in enumerate(combinations(names, 2)):
            link = stack.enter_context(
                closing(PacketLink(namespaces[near], namespaces[far], conditions, 2 * number))
            )
            directions[near, far], directions[far, near] = link.forward, link.backward
        yield Machines(namespaces, directions)
