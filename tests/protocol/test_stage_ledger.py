"""Which steps a stage takes, and when."""

from distllm.engine.pipeline.protocol.stage_ledger import StageLedger, Verdict


def ledger() -> StageLedger[str]:
    made: StageLedger[str] = StageLedger(max_held=4)
    assert made.begin_epoch(7)
    return made


def test_steps_are_given_out_in_their_order_each_once() -> None:
    steps = ledger()
    assert [steps.offer(7, number, f"step {number}") for number in (1, 0, 1)] == [
        Verdict.ACCEPTED,
        Verdict.ACCEPTED,
        Verdict.KNOWN,
    ]
    assert [steps.take() for _ in range(3)] == ["step 0", "step 1", None]
    assert steps.offer(7, 0, "again") is Verdict.KNOWN


def test_other_epochs_are_told_apart() -> None:
    steps = ledger()
    assert steps.offer(6, 0, "old") is Verdict.STALE
    assert steps.offer(8, 0, "new") is Verdict.NOT_YET
    assert not steps.begin_epoch(7)


def test_a_sender_that_is_far_ahead_has_to_repeat_its_step() -> None:
    steps = ledger()
    assert steps.offer(7, 4, "early") is Verdict.FULL
    assert steps.offer(7, 0, "first") is Verdict.ACCEPTED
    assert steps.take() == "first"
    assert steps.offer(7, 4, "early") is Verdict.ACCEPTED


def test_what_comes_once_is_kept_however_far_ahead() -> None:
    steps = ledger()
    verdicts = {steps.offer(7, number, str(number), is_repeated=False) for number in range(1000)}
    assert verdicts == {Verdict.ACCEPTED}
    assert [steps.take() for _ in range(1000)] == [str(number) for number in range(1000)]
