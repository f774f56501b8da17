"""A ticket says who its bearer is: to one machine, for a few minutes, and of one cluster."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from distllm.engine.pipeline.security.authority import ClusterAuthority
from distllm.engine.pipeline.security.certificate import CLOCK_SKEW
from distllm.engine.pipeline.security.peer_id import COORDINATOR, PeerId
from distllm.engine.pipeline.security.ticket import LIFETIME, TicketCheck, TicketRefused, Tickets
from tests.engine.pipeline.conftest import joined

NOT_OURS = "is none of this cluster for this machine"


@pytest.fixture
def check(authority: ClusterAuthority) -> TicketCheck:
    return TicketCheck(authority.certificate_pem, COORDINATOR)


@pytest.fixture
def tickets(authority: ClusterAuthority, now: datetime) -> Tickets:
    return Tickets(joined(authority, "peer-1", now), COORDINATOR)


def test_a_peer_is_known_by_its_ticket(check: TicketCheck, tickets: Tickets, now: datetime) -> None:
    assert check.caller(tickets.current(now), now) == "peer-1"
    assert check.caller(tickets.current(now), now + LIFETIME) == "peer-1"


def test_a_ticket_is_made_anew_before_it_expires(tickets: Tickets, now: datetime) -> None:
    first = tickets.current(now)
    assert tickets.current(now + timedelta(seconds=59)) == first
    assert tickets.current(now + timedelta(seconds=61)) != first
    assert tickets.current(now - timedelta(seconds=1)) != first, (
        "a clock that was set back is no reason for tickets"
    )


@pytest.mark.parametrize("late", [LIFETIME + CLOCK_SKEW, -CLOCK_SKEW], ids=["too late", "too early"])
def test_it_is_valid_for_minutes(check: TicketCheck, tickets: Tickets, now: datetime, late: timedelta) -> None:
    ticket, beyond = tickets.current(now), timedelta(seconds=1 if late > timedelta(0) else -1)
    assert check.caller(ticket, now + late) == "peer-1"
    with pytest.raises(TicketRefused, match="set both machines' clocks"):
        check.caller(ticket, now + late + beyond)


def test_it_outlives_no_certificate(check: TicketCheck, authority: ClusterAuthority, now: datetime) -> None:
    identity = joined(authority, "peer-1", now)
    ticket = Tickets(identity, COORDINATOR).current(identity.expires_at)
    assert check.caller(ticket, identity.expires_at) == "peer-1"
    with pytest.raises(TicketRefused):
        check.caller(ticket, identity.expires_at + timedelta(seconds=1))


def test_a_ticket_for_another_machine_is_none(
    check: TicketCheck, authority: ClusterAuthority, now: datetime
) -> None:
    elsewhere = Tickets(joined(authority, "peer-1", now), PeerId("peer-2")).current(now)
    with pytest.raises(TicketRefused, match=NOT_OURS):
        check.caller(elsewhere, now)


def test_a_ticket_of_another_cluster_is_none(check: TicketCheck, tmp_path: Path, now: datetime) -> None:
    other = ClusterAuthority.open(tmp_path / "other", now)
    with pytest.raises(TicketRefused, match=NOT_OURS):
        check.caller(Tickets(joined(other, "peer-1", now), COORDINATOR).current(now), now)


def test_no_part_of_a_ticket_can_be_replaced(
    check: TicketCheck, tickets: Tickets, authority: ClusterAuthority, now: datetime
) -> None:
    own = tickets.current(now).split(".")
    other = Tickets(joined(authority, "peer-2", now), COORDINATOR).current(now + timedelta(seconds=1)).split(".")
    for number in range(3):
        mixed = ".".join([*own[:number], other[number], *own[number + 1 :]])
        with pytest.raises(TicketRefused, match=NOT_OURS):
            check.caller(mixed, now)


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.1.c", "....", "AAAA.9999999999999.AAAA", "x" * 9000, "AAA=.1.A", "é.1.A"]
)
def test_rubbish_is_refused(check: TicketCheck, now: datetime, text: str) -> None:
    with pytest.raises(TicketRefused):
        check.caller(text, now)
