"""A call is tried again as often as was set, and then its error is told."""

import pytest

from distllm.engine.pipeline.patience import Patience


class Machine:
    """Answers at a certain try."""

    def __init__(self, answers_at: int) -> None:
        self.num_tries = 0
        self._answers_at = answers_at

    async def ask(self) -> str:
        self.num_tries += 1
        if self.num_tries < self._answers_at:
            raise ConnectionError(f"no answer at try {self.num_tries}")
        return "here"


async def test_a_call_is_tried_again_until_it_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(answers_at=2)
    assert await Patience(retry_attempts=3).insist(machine.ask) == "here"
    assert machine.num_tries == 2
    assert "no answer at try 1; trying again in 0.5 s, 1 of 3" in caplog.text


@pytest.mark.parametrize("retry_attempts", [0, 1])
async def test_it_is_tried_again_no_more_often_than_was_set(retry_attempts: int) -> None:
    machine = Machine(answers_at=9)
    with pytest.raises(ConnectionError, match=f"no answer at try {1 + retry_attempts}"):
        await Patience(retry_attempts=retry_attempts).insist(machine.ask)
    assert machine.num_tries == 1 + retry_attempts
