"""Thousands of random histories: every token must be that of an undisturbed run, every block accounted for."""

from collections import Counter
from itertools import product
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from distllm.scheduler.admission import RequestRefused
from distllm.scheduler.messages import EngineRequest
from tests.scheduler.harness import Harness, make_request, prompt_scores, undisturbed
from tests.scheduler.slot_executor import VOCAB_SIZE

NUM_HISTORIES = 2000
BLOCK_SIZE = 4
MAX_MODEL_LEN = 40
STOP_IDS = tuple(range(0, VOCAB_SIZE, 11))

configs = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(3, 14),
        "max_in_flight": st.integers(1, 3),
        "num_shares": st.integers(1, 3),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(2, 24),
        "enable_prefix_caching": st.sampled_from([True, True, False]),
    }
)
# Prompts are beginnings of two texts that part in their second block and meet again, at times with a tail.
TEXTS = ([*range(28)], [*range(6), 200, 201, *range(8, 28)])
PROMPTS = [text[:length] + tail for length in range(1, 29) for text in TEXTS for tail in ([], [300], [301, 300])]
PARAMETERS = {
    "n": (1, 2, 3, 5),
    "priority": (0, 1, -1),
    "cache_salt": ("", "tenant"),
    "max_tokens": (0, 1, 4, 9, 16, None),
    "stop_token_ids": ((), STOP_IDS),
    "logprobs": (None, 0),
    "prompt_logprobs": (None, 0),
}
VARIANTS = [dict(zip(PARAMETERS, values, strict=True)) for values in product(*PARAMETERS.values())]
# Few draws, for they cost more than the scheduler does.
prompts = st.sampled_from(PROMPTS)
variants = st.sampled_from(VARIANTS)
num_known = st.lists(st.integers(0, 12), min_size=1, max_size=3)


class History(RuleBasedStateMachine):
    """One history. The harness checks integrity after each operation; `seen` counts what happened in all."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(config=configs)
    def start(self, config: dict[str, Any]) -> None:
        self.engine = Harness(block_size=BLOCK_SIZE, max_model_len=MAX_MODEL_LEN, **config)
        self.max_len = min(MAX_MODEL_LEN, config["num_blocks"] * BLOCK_SIZE + 1)
        self.live: dict[str, EngineRequest] = {}
        self.aborted: dict[tuple[str, int], int] = {}
        self.num_added = 0
        self.seen["histories"] += 1

    @rule(prompt_ids=prompts, variant=variants)
    def add(self, prompt_ids: list[int], variant: dict[str, Any]) -> None:
        self._add(make_request(f"r{self.num_added}", prompt_ids, **variant))

    @rule(prompt_ids=prompts, variant=variants, num_known=num_known)
    def resubmit(self, prompt_ids: list[int], variant: dict[str, Any], num_known: list[int]) -> None:
        """As after an engine's death: sequences with the tokens that they had."""
        request = make_request(f"r{self.num_added}", prompt_ids, **variant)
        known = {}
        for index, count in enumerate(num_known):
            outputs, _ = undisturbed(request, index, self.max_len)
            known[index] = outputs[: min(count, len(outputs) - 1)] if outputs else []
        self._add(make_request(request.request_id, prompt_ids, outputs=known, **variant))

    def _add(self, request: EngineRequest) -> None:
        self.num_added += 1
        try:
            self.engine.scheduler.add(request)
        except RequestRefused:
            self.seen["refused"] += 1
        else:
            self.live[request.request_id] = request
            self.engine.scheduler.check_integrity()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            while self.engine.submit() is not None:
                pass
            if self.engine.in_flight:
                self.engine.finish()

    @rule()
    def submit(self) -> None:
        self.engine.submit()

    @precondition(lambda self: self.engine.in_flight)
    @rule()
    def finish(self) -> None:
        self.engine.finish()

    @precondition(lambda self: self.engine.in_flight)
    @rule(number=st.integers(0, 5))
    def fail_a_chunk(self, number: int) -> None:
        self.engine.finish(fails=[number])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        all_indices = [start.index for start in self.live[request_id].sequences]
        indices = data.draw(st.none() | st.sets(st.sampled_from(all_indices), min_size=1))
        self.engine.abort(request_id, indices)
        for index in all_indices if indices is None else indices:
            if self.engine.end_of(request_id, index) is None:
                self.aborted.setdefault((request_id, index), len(self.engine.outputs_of(request_id, index)))
                self.seen["aborted"] += 1

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.run()
        for request in self.live.values():
            self._check_answers(request)
        stats = self.engine.scheduler.stats()
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
        self.seen["preemptions"] += stats.preemptions_total
        self.seen["prefix hits"] += stats.prefix_hit_tokens_total
        self.seen["copies"] += self.engine.executor.num_copies

    def _check_answers(self, request: EngineRequest) -> None:
        for start in request.sequences:
            place = (request.request_id, start.index)
            expected, reason = undisturbed(request, start.index, self.max_len, start.output_ids)
            tokens = [*start.output_ids, *self.engine.tokens_of(*place)]
            end = self.engine.end_of(*place)
            if place in self.aborted:
                assert end is None
                assert len(self.engine.outputs_of(*place)) == self.aborted[place], "it went on after its abort"
            if end is None or end == "error":
                assert place in self.aborted or end == "error", "it never ended"
                assert tokens == expected[: len(tokens)]
            else:
                assert (tokens, end) == (expected, reason)
                self._check_extras(request, start.index)

    def _check_extras(self, request: EngineRequest, index: int) -> None:
        first, *others = self.engine.outputs_of(request.request_id, index)
        asked = request.params.prompt_logprobs is not None and index == 0
        assert first.prompt_logprobs == (prompt_scores(request) if asked else None)
        assert first.num_cached_tokens is not None
        assert 0 <= first.num_cached_tokens <= len(request.prompt_ids)
        for output in others:
            assert output.prompt_logprobs is None
            assert output.num_cached_tokens is None
        self.seen["prompts scored"] += asked


def test_random_histories_answer_as_undisturbed_runs_and_keep_the_books() -> None:
    History.seen.clear()
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=NUM_HISTORIES,
            stateful_step_count=14,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert History.seen["histories"] >= NUM_HISTORIES
    for event in ("preemptions", "prefix hits", "copies", "aborted", "refused", "prompts scored"):
        assert History.seen[event] > NUM_HISTORIES / 20, f"{event}: {History.seen[event]}"
