"""A frame is sent until it is taken, refused for good, or not wanted any more."""

from collections.abc import Sequence
from typing import cast

import pytest

from distllm.engine.pipeline.delivery import Refused, Status, deliver
from distllm.engine.pipeline.transport.client import Http2Client, Unreachable


class Answers:
    """Stands for a client whose server answers so, one call after another; None cannot be reached."""

    def __init__(self, statuses: Sequence[int | None]) -> None:
        self.statuses = list(statuses)
        self.num_calls = 0

    async def post(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        assert (path, body) == ("/v1/step", b"frame")
        assert timeout_s > 0
        self.num_calls += 1
        status = self.statuses.pop(0)
        if status is None:
            raise Unreachable("nobody there")
        return status, b"no, never"


async def send(answers: Answers, num_wanted: int = 100) -> list[str]:
    """The reasons for which it could not be reached."""
    reasons: list[str] = []
    await deliver(
        cast(Http2Client, answers), "/v1/step", b"frame", lambda: answers.num_calls < num_wanted, reasons.append
    )
    return reasons


@pytest.mark.parametrize("last", [Status.ACCEPTED, Status.STALE])
async def test_it_is_sent_until_it_is_taken_or_too_late(last: Status) -> None:
    answers = Answers([None, Status.NOT_YET, Status.FULL, None, last])
    assert await send(answers) == ["nobody there"] * 2
    assert answers.num_calls == 5


@pytest.mark.parametrize("status", [400, 403, 413, 500])
async def test_what_will_never_be_taken_is_told(status: int) -> None:
    with pytest.raises(Refused, match="no, never"):
        await send(Answers([status]))


async def test_what_is_not_wanted_any_more_is_left() -> None:
    answers = Answers([Status.NOT_YET] * 10)
    await send(answers, num_wanted=3)
    assert answers.num_calls == 3
