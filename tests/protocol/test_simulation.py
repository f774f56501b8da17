"""Random faults over the real protocol: every answer exact. Without any one rule, answers go wrong."""

from collections.abc import Sequence
from typing import Any

import pytest

from distllm.engine.interface import StepOutput
from distllm.engine.pipeline.protocol.stage_ledger import StageLedger, Verdict
from distllm.engine.pipeline.protocol.step_log import Commit, StepLog
from distllm.engine.pipeline.protocol.steps import NumberedStep
from tests.protocol.simulation import Rules, Simulation

NUM_SEEDS = 500
NUM_SOAK_SEEDS = 10_000


class WithoutEpochs(StageLedger[Any]):
    """Takes steps of any epoch for ones of its own."""

    def offer(self, epoch: int, number: int, item: Any, *, is_repeated: bool = True) -> Verdict:
        return super().offer(self.epoch, number, item, is_repeated=is_repeated)


class WithoutLength(StageLedger[Any]):
    """Applies what comes as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._arrived: list[Any] = []

    def offer(self, epoch: int, number: int, item: Any, *, is_repeated: bool = True) -> Verdict:
        if epoch != self.epoch:
            return Verdict.STALE if epoch < self.epoch else Verdict.NOT_YET
        self._arrived.append(item)
        return Verdict.ACCEPTED

    def take(self) -> Any:
        return self._arrived.pop(0) if self._arrived else None


class WithoutCommitIndex(StepLog):
    """Commits outputs as they come, also twice."""

    def commit(self, epoch: int, number: int, output: StepOutput) -> list[Commit]:
        if epoch != self.epoch or number not in self._under_way:
            return []
        under_way = self._under_way[number]
        numbered = under_way.numbered
        self._committed.note(numbered.step, numbered.first_stage, numbered.last_stage)
        return [] if numbered.is_rebuild else [Commit(under_way.scheduled, output)]


class WithoutRebuilding(StepLog):
    """Believes that replacements have the KV of those that they replace."""

    def begin_epoch(self, held: Sequence[int | None]) -> list[NumberedStep]:
        return super().begin_epoch(range(len(held)))


def run(seeds: Sequence[int], rules: Rules) -> int:
    """How many epochs there were."""
    num_epochs = 0
    for seed in seeds:
        simulation = Simulation(seed, rules)
        try:
            simulation.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        num_epochs += simulation.num_epochs
    return num_epochs


def test_every_answer_is_exact_whatever_fails() -> None:
    assert run(range(NUM_SEEDS), Rules()) > 2 * NUM_SEEDS, "too little went wrong"


@pytest.mark.soak
def test_every_answer_is_exact_over_many_seeds() -> None:
    run(range(NUM_SOAK_SEEDS), Rules())


@pytest.mark.parametrize(
    "rules",
    [
        Rules(ledger=WithoutEpochs),
        Rules(ledger=WithoutLength),
        Rules(log=WithoutCommitIndex),
        Rules(log=WithoutRebuilding),
    ],
    ids=["epochs", "length", "commit-index", "rebuilding"],
)
def test_no_rule_can_be_left_out(rules: Rules) -> None:
    failed = []
    for seed in range(NUM_SEEDS // 5):
        try:
            Simulation(seed, rules).run()
        except Exception:
            failed.append(seed)
    assert len(failed) > NUM_SEEDS // 50
