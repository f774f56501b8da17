"""Machines for tests, where this process may make them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.link import CLEAR, Conditions
from benchmarks.machines import Machines, linked_machines
from benchmarks.namespaces import NoNamespaces


@contextmanager
def machines_if_allowed(names: Sequence[str], conditions: Conditions = CLEAR) -> Iterator[Machines]:
    """As `linked_machines`; where they cannot be made the test is skipped, with the reason."""
    with ExitStack() as stack:
        try:
            machines = stack.enter_context(linked_machines(names, conditions))
        except NoNamespaces as error:
            pytest.skip(str(error))
        yield machines
