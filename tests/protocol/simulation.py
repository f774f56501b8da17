"""A pipeline of fake stages that die and return, over a network that drops, repeats, delays and reorders.

The protocol's own code runs in virtual time; the model is a chain of hashes over what is read from physical KV
slots, so a step applied twice, too early, in the wrong epoch or over KV that is not there changes tokens. One seed
is one run.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from distllm.engine.interface import ChunkOutput, SequenceChunk, StepInput, StepOutput
from distllm.engine.pipeline.protocol.stage_ledger import StageLedger, Verdict
from distllm.engine.pipeline.protocol.step_log import Commit, StepLog
from distllm.engine.pipeline.protocol.steps import NumberedStep
from distllm.engine.sampling_params import sequence_seed
from distllm.scheduler.config import SchedulerConfig
from distllm.scheduler.messages import EngineRequest
from distllm.scheduler.scheduler import Scheduler
from tests.scheduler.harness import make_request
from tests.scheduler.slot_executor import executor_info, kv_of, next_token

BLOCK_SIZE = 4
MAX_LEN = 40
FAULTS_END_S = 6.0
END_S = 400.0
RETRY_S = 0.3
NOWHERE = -1
"""What is read where there is no KV."""

Activations = list[list[int]]  # of each chunk, of each of its tokens


@dataclass(frozen=True)
class Rules:
    """The protocol's classes; a test puts one in that lacks a rule."""

    ledger: type[StageLedger[Any]] = StageLedger
    log: type[StepLog] = StepLog


@dataclass
class Stage:
    """A process that holds a stage, or did."""

    ledger: StageLedger[Any]
    number: int = 0
    successor: "Stage | None" = None
    kv: dict[tuple[int, int], int] = field(default_factory=dict)
    logged: dict[tuple[int, int], int] = field(default_factory=dict)
    is_alive: bool = True
    paused_until_s: float = 0.0

    def compute(self, numbered: NumberedStep, inputs: Activations) -> Activations:
        for copy in numbered.step.block_copies:
            for slot in range(BLOCK_SIZE):
                for slots in (self.kv, self.logged):
                    slots[copy.destination, slot] = slots.get((copy.source, slot), NOWHERE)
        for chunk, values in zip(numbered.step.chunks, inputs, strict=True):
            previous = self._read(chunk, chunk.num_computed_before)[-1:]
            for position, value in enumerate(values, chunk.num_computed_before):
                previous = [kv_of(previous[0] if previous else 0, value)]
                self.kv[_slot(chunk, position)] = previous[0]
        for chunk in numbered.step.chunks:
            for position in _positions(chunk):
                self.logged[_slot(chunk, position)] = hash(tuple(self._read(chunk, position + 1)))
        return self.recall(numbered)

    def recall(self, numbered: NumberedStep) -> Activations:
        """The activations that were sent on for the same tokens before."""
        return [
            [self.logged.get(_slot(chunk, position), NOWHERE) for position in _positions(chunk)]
            for chunk in numbered.step.chunks
        ]

    def sample(self, step: StepInput) -> StepOutput:
        return StepOutput(step.step_id, [self._answer(chunk) for chunk in step.chunks])

    def _answer(self, chunk: SequenceChunk) -> ChunkOutput:
        if chunk.sample is None:
            return ChunkOutput(chunk.sequence_id, None)
        kv = self._read(chunk, chunk.num_computed_before + len(chunk.token_ids))
        return ChunkOutput(chunk.sequence_id, next_token(kv, chunk.sample.seed))

    def _read(self, chunk: SequenceChunk, num_tokens: int) -> list[int]:
        return [self.kv.get(_slot(chunk, position), NOWHERE) for position in range(num_tokens)]


def _positions(chunk: SequenceChunk) -> range:
    return range(chunk.num_computed_before, chunk.num_computed_before + len(chunk.token_ids))


def _slot(chunk: SequenceChunk, position: int) -> tuple[int, int]:
    return chunk.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE


def expected_tokens(request: EngineRequest, index: int, num_stages: int) -> list[int]:
    """What a pipeline without faults, paging or batches answers."""
    outputs: list[int] = []
    while len(outputs) < min(request.params.max_tokens or 0, MAX_LEN - len(request.prompt_ids)):
        values = [*request.prompt_ids, *outputs]
        for _ in range(num_stages):
            kv: list[int] = []
            for value in values:
                kv.append(kv_of(kv[-1] if kv else 0, value))
            values = [hash(tuple(kv[:length])) for length in range(1, len(kv) + 1)]
        outputs.append(next_token(kv, sequence_seed(request.seed, index)))
    return outputs


class Simulation:
    """`run` drives requests to their end. It raises AssertionError where an answer is late, wrong or double."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self.random = random.Random(seed)
        self.rules = rules
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.num_epochs = 0
        draw = self.random
        num_stages, num_blocks = draw.randint(1, 4), draw.randint(12, 24)
        self.drop, self.repeat, self.spread_s = draw.uniform(0, 0.2), draw.uniform(0, 0.2), draw.uniform(0, 0.3)
        self.max_in_flight = draw.randint(1, num_stages + 1)
        config = SchedulerConfig(max_num_seqs=draw.randint(1, 5), max_num_batched_tokens=draw.randint(3, 16))
        self.scheduler = Scheduler(config, executor_info(num_blocks, BLOCK_SIZE, MAX_LEN), lambda: self.now_s)
        self.log = rules.log(num_stages, num_blocks, draw.randint(2, 12), 0, BLOCK_SIZE)
        self.stages = [Stage(rules.ledger(), number) for number in range(num_stages)]
        self.retired: list[Stage] = []
        self.in_flight: deque[StepInput] = deque()
        self.answers: dict[tuple[str, int], list[int]] = {}
        self.requests = [self._request(number) for number in range(draw.randint(2, 8))]
        self.one_way: set[tuple[int, int]] = set()
        self.aborted: set[str] = set()

    def run(self) -> None:
        self._fence()
        for request in self.requests:
            self._at(self.random.uniform(0, 3), partial(self._add, request))
            if self.random.random() < 0.2:
                self._at(self.random.uniform(0, FAULTS_END_S), partial(self._abort, request))
        for _ in range(self.random.randint(0, 5)):
            self._at(self.random.uniform(0, FAULTS_END_S), self._fault)
        while self._events and self.now_s < END_S:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
        for request in self.requests:
            for start in request.sequences:
                answer = self.answers[request.request_id, start.index]
                expected = expected_tokens(request, start.index, len(self.stages))
                if request.request_id in self.aborted:
                    expected = expected[: len(answer)]
                assert answer == expected, request.request_id
        assert not self.scheduler.has_work
        self.scheduler.check_integrity()

    def _request(self, number: int) -> EngineRequest:
        prompt = [*range(self.random.randint(1, 20))]  # beginnings of one text, which share a prefix
        n, max_tokens = self.random.choice((1, 1, 2)), self.random.randint(1, 12)
        return make_request(f"r{number}", prompt, n=n, max_tokens=max_tokens, seed=number, arrival_s=0.0)

    def _add(self, request: EngineRequest) -> None:
        self.answers.update({(request.request_id, start.index): [] for start in request.sequences})
        self.scheduler.add(request)
        self._submit()

    def _abort(self, request: EngineRequest) -> None:
        """Its blocks are free at once, also while steps that write them are under way."""
        self.aborted.add(request.request_id)
        self.scheduler.abort(request.request_id)
        self._submit()

    # The coordinator.

    def _submit(self) -> None:
        while len(self.in_flight) < self.max_in_flight and (step := self.scheduler.schedule(self.max_in_flight)):
            self.in_flight.append(step)
            self._send_steps(self.log.append(step))

    def _send_steps(self, steps: list[NumberedStep]) -> None:
        for numbered in steps:
            inputs = [list(chunk.token_ids) for chunk in numbered.step.chunks]
            self._post(None, self.stages[0], numbered, inputs)

    def _take_result(self, numbered: NumberedStep, output: StepOutput) -> None:
        for commit in self.log.commit(numbered.epoch, numbered.number, output):
            self._apply(commit)
        self._submit()

    def _apply(self, commit: Commit) -> None:
        assert self.in_flight.popleft() is commit.step
        for output in self.scheduler.apply(commit.step, commit.output):
            self.answers[output.request_id, output.index] += output.token_ids
        self.scheduler.check_integrity()

    def _fence(self) -> None:
        self.num_epochs += 1
        epoch = self.log.epoch
        for number, stage in enumerate(self.stages):
            successor = self.stages[number + 1] if number + 1 < len(self.stages) else None
            self._post_until(
                lambda: epoch == self.log.epoch,
                stage,
                partial(self._begin, stage, epoch, number, successor),
            )

    def _replace(self, lost: Stage) -> None:
        """The coordinator believes that `lost` is lost, rightly or not."""
        if lost not in self.stages:
            return
        returned = [stage for stage in self.retired if stage.is_alive]
        self.retired.append(lost)
        reuses = bool(returned) and self.random.random() < 0.5
        replacement = self.random.choice(returned) if reuses else Stage(self.rules.ledger())
        if reuses:
            self.retired.remove(replacement)
        held = [None if stage is lost else number for number, stage in enumerate(self.stages)]
        self.stages = [replacement if stage is lost else stage for stage in self.stages]
        steps = self.log.begin_epoch(held)
        self._fence()
        self._send_steps(steps)

    # A stage.

    def _begin(self, stage: Stage, epoch: int, number: int, successor: Stage | None) -> bool:
        if stage.ledger.begin_epoch(epoch):
            stage.number, stage.successor = number, successor
        return True

    def _receive(self, stage: Stage, numbered: NumberedStep, inputs: Activations) -> bool:
        verdict = stage.ledger.offer(numbered.epoch, numbered.number, (numbered, inputs))
        while item := stage.ledger.take():
            self._apply_on(stage, *item)
        return verdict not in (Verdict.NOT_YET, Verdict.FULL)

    def _apply_on(self, stage: Stage, numbered: NumberedStep, inputs: Activations) -> None:
        outputs: Activations = []
        if numbered.first_stage <= stage.number <= numbered.last_stage:
            outputs = stage.compute(numbered, inputs)
        elif stage.number == numbered.first_stage - 1:
            outputs = stage.recall(numbered)
        if stage.successor is None:
            self._post_result(stage, numbered, stage.sample(numbered.step))
        else:
            self._post(stage, stage.successor, numbered, outputs)

    # The network: what is posted is posted again until it is acknowledged, or its sender knows a later epoch.

    def _post(self, sender: Stage | None, to: Stage, numbered: NumberedStep, inputs: Activations) -> None:
        self._post_until(
            lambda: self._sends(sender, numbered), to, lambda: self._receive(to, numbered, inputs), sender
        )

    def _post_result(self, sender: Stage, numbered: NumberedStep, output: StepOutput) -> None:
        def receive() -> bool:
            self._take_result(numbered, output)
            return True

        self._post_until(lambda: self._sends(sender, numbered), None, receive, sender)

    def _sends(self, sender: Stage | None, numbered: NumberedStep) -> bool:
        if sender is None:
            return numbered.epoch == self.log.epoch
        return sender.is_alive and numbered.epoch == sender.ledger.epoch

    def _post_until(
        self,
        is_wanted: Callable[[], bool],
        to: Stage | None,
        receive: Callable[[], bool],
        sender: Stage | None = None,
    ) -> None:
        acknowledged = False

        def arrive() -> None:
            nonlocal acknowledged
            if to is not None and not to.is_alive:
                return
            if to is not None and to.paused_until_s > self.now_s:
                self._at(to.paused_until_s - self.now_s + self.random.uniform(0, 0.01), arrive)
            elif receive() and self.random.random() >= self._loss(to, sender):
                acknowledged = True

        def attempt() -> None:
            if acknowledged or not is_wanted():
                return
            if sender is not None and sender.paused_until_s > self.now_s:
                self._at(sender.paused_until_s - self.now_s, attempt)
                return
            if self.random.random() >= self._loss(sender, to):
                self._at(self._delay_s(), arrive)
            if self.random.random() < self.repeat:
                self._at(self._delay_s() * self.random.choice((1, 20)), arrive)
            self._at(RETRY_S, attempt)

        attempt()

    def _loss(self, sender: Stage | None, to: Stage | None) -> float:
        if (id(sender), id(to)) in self.one_way:
            return 1.0
        return self.drop if self.now_s < FAULTS_END_S else 0.0

    def _delay_s(self) -> float:
        return 0.005 + self.random.uniform(0, self.spread_s)

    def _at(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + max(0.0, delay_s), next(self._order), event))

    # What goes wrong.

    def _fault(self) -> None:
        stage = self.random.choice(self.stages)
        match self.random.randrange(4):
            case 0:
                stage.is_alive = False
            case 1:
                stage.paused_until_s = self.now_s + self.random.uniform(0.5, 5)
            case 2:
                pass  # a false suspicion
            case 3:
                edge = (id(stage), id(stage.successor))
                self.one_way.add(edge)
                self._at(self.random.uniform(0.5, 3), lambda: self.one_way.discard(edge))
        self._at(self.random.uniform(0.2, 1), lambda: self._replace(stage))
