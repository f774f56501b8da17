"""Which refusals are retried, and when."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from distllm.clients.retries import RetryPolicy, retry_after_s

POLICY = RetryPolicy(max_retries=2, max_delay_s=10.0)


def test_retry_after_is_honoured() -> None:
    assert POLICY.delay_s(429, {"retry-after": "3"}, 0) == 3.0
    assert POLICY.delay_s(503, {"retry-after": "0.25"}, 1) == 0.25


def test_a_wait_over_the_bound_is_not_cut_short_but_refused() -> None:
    assert POLICY.delay_s(429, {"retry-after": "11"}, 0) is None


def test_retries_are_bounded() -> None:
    assert POLICY.delay_s(429, {"retry-after": "1"}, 2) is None


@pytest.mark.parametrize("status", [200, 400, 404, 500, 502])
def test_other_statuses_are_not_retried(status: int) -> None:
    assert POLICY.delay_s(status, {"retry-after": "1"}, 0) is None


def test_without_retry_after_the_delay_doubles_up_to_the_bound() -> None:
    policy = RetryPolicy(max_retries=100, max_delay_s=10.0)
    for num_retries in range(100):
        delay_s = policy.delay_s(503, {}, num_retries)
        assert delay_s is not None
        assert min(10.0, 0.25 * 2**num_retries) <= delay_s <= min(10.0, 0.5 * 2**num_retries)


def test_retry_after_reads_dates() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=60), usegmt=True)
    assert 50 < (retry_after_s({"retry-after": soon}) or 0) <= 60
    assert retry_after_s({"retry-after": past}) == 0.0


def test_nonsense_in_retry_after_is_as_none() -> None:
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None
