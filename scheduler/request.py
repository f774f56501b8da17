"""A request inside the engine: what its sequences have in common."""

from collections.abc import Iterator

from distllm.engine.interface import SequenceId
from distllm.scheduler.messages import EngineRequest
from distllm.scheduler.sequence import Sequence, Status


class Request:
    """`sequences` holds the live ones by index; the lowest is the leader, which computes the prompt for all.

    `forks` are the sequences that wait for that. `max_output_tokens` is the limit asked for, or what the context of
    `max_len` tokens leaves room for.
    """

    def __init__(
        self, message: EngineRequest, max_len: int, sequence_ids: Iterator[SequenceId], now_s: float
    ) -> None:
        self.request_id = message.request_id
        self.prompt_ids = message.prompt_ids
        self.num_prompt_tokens = len(message.prompt_ids)
        self.params = message.params
        self.seed = message.seed
        self.priority = message.priority
        self.arrival_s = message.arrival_s or now_s
        self.cache_salt = message.cache_salt
        self.stop_ids = frozenset((*self.params.eos_token_ids, *self.params.stop_token_ids))
        self.needs_history = self.params.needs_history
        room = max_len - self.num_prompt_tokens
        self.max_output_tokens = room if self.params.max_tokens is None else min(self.params.max_tokens, room)
        self.is_prompt_counted = False
        starts = sorted(message.sequences, key=lambda start: start.index)
        self.sequences = {start.index: Sequence(next(sequence_ids), self, start) for start in starts}
        self.leader, *self.forks = self.sequences.values()
        self.leader.status = Status.WAITING

    def scores_prompt_on(self, index: int) -> bool:
        """Whether the sequence of that index gathers the prompt's log-probabilities: the first one does."""
        return self.params.prompt_logprobs is not None and index == 0

    def take_forks(self) -> list[Sequence]:
        """The sequences that waited for the prompt, which wait no longer."""
        forks, self.forks = self.forks, []
        return forks

    def drop(self, sequence: Sequence) -> Sequence | None:
        """Forget an ended sequence. Returns the fork that must compute the prompt in its place, if any."""
        del self.sequences[sequence.index]
        if sequence in self.forks:
            self.forks.remove(sequence)
        elif sequence is self.leader and self.forks:
            self.leader = self.forks.pop(0)
            return self.leader
        return None
