"""One sequence becoming text: detokenised, cut at stop strings, its logprobs beside the text they belong to."""

from dataclasses import dataclass, field

from distllm.engine.interface import TokenLogprobs
from distllm.scheduler.messages import SequenceOutput
from distllm.server.errors import GenerationFailed
from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.prompt_text import PromptText
from distllm.server.stop_strings import StopMatcher
from distllm.server.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the text. `offset` counts characters from the start of the prompt; `scores` is None for the
    prompt's first token."""

    token_id: int
    offset: int
    scores: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What an output added to choice `index`. The last delta of a choice carries `finish_reason`."""

    index: int
    text: str
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None


class Choice:
    """Turns a sequence's outputs into deltas. Its index is that of the choice in the response.

    text:    prompt ......... | released ........ | held back for a stop string | half a character
             0    _prompt_end              _num_released              _num_decoded
    """

    def __init__(
        self, index: int, plan: GenerationPlan, prompt: PromptPlan, prompt_text: PromptText, tokenizer: Tokenizer
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.cumulative_logprob = 0.0
        self.is_finished = False
        self._plan = plan
        self._min_tokens = prompt.params.min_tokens
        self._matcher = StopMatcher(plan.stop, plan.include_stop)
        self._detokenizer = tokenizer.detokenizer(plan.skip_special_tokens)
        self._wants_logprobs = plan.num_top_logprobs is not None
        self._waiting: list[ScoredToken] = []
        self._prompt = prompt
        self._prompt_text = prompt_text
        self._detokenizer.prime(prompt.token_ids)
        self._num_decoded = self._num_released = len(prompt_text.text)

    def echo(self, prompt_logprobs: list[TokenLogprobs]) -> ChoiceDelta:
        """The delta that repeats the prompt; the scores belong to its tokens after the first."""
        if not self._wants_logprobs:
            return ChoiceDelta(self.index, self._prompt_text.text)
        scores = [None, *prompt_logprobs]
        tokens = [
            ScoredToken(*entry)
            for entry in zip(self._prompt.token_ids, self._prompt_text.offsets, scores, strict=True)
        ]
        return ChoiceDelta(self.index, self._prompt_text.text, tokens)

    def accept(self, output: SequenceOutput) -> ChoiceDelta:
        """Take the sequence's next tokens. Raises GenerationFailed when the engine gave up on it."""
        if output.finish_reason in ("abort", "error"):
            raise GenerationFailed(output.error or "the engine ended this request")
        text = ""
        last = len(output.token_ids) - 1
        for position, token_id in enumerate(output.token_ids):
            is_stop_token = position == last and output.stop_token_id is not None
            scores = output.logprobs[position] if output.logprobs else None
            text += self._push(token_id, scores, is_hidden=is_stop_token and not self._plan.include_stop)
            if self.is_finished:
                return self._delta(text, "stop")
        if output.finish_reason is None:
            return self._delta(text, None)
        return self._finish(text, output.finish_reason)

    @property
    def mean_logprob(self) -> float:
        """What best_of ranks by: the higher, the better."""
        return self.cumulative_logprob / max(1, self.num_tokens)

    def _push(self, token_id: int, scores: TokenLogprobs | None, is_hidden: bool) -> str:
        """Take one token; returns the text that it released."""
        self.num_tokens += 1
        if scores is not None:
            self.cumulative_logprob += scores.logprob
        if self._wants_logprobs:
            self._waiting.append(ScoredToken(token_id, self._num_decoded, scores))
        piece = "" if is_hidden else self._detokenizer.push(token_id)
        self._num_decoded += len(piece)
        if self.num_tokens <= self._min_tokens:
            return self._matcher.pass_by(piece)
        release = self._matcher.feed(piece)
        self.is_finished = release.is_stopped
        return release.text

    def _finish(self, text: str, reason: str) -> ChoiceDelta:
        """End of the sequence: what was held back is text after all, unless it completes a stop string."""
        self.is_finished = True
        release = self._matcher.feed(self._detokenizer.flush())
        if release.is_stopped:
            return self._delta(text + release.text, "stop")
        text += release.text + self._matcher.flush()
        self._num_released += len(text)
        tokens, self._waiting = self._waiting, []
        return ChoiceDelta(self.index, text, tokens, reason)

    def _delta(self, text: str, finish_reason: str | None) -> ChoiceDelta:
        """A delta with the tokens whose text has begun to be released."""
        self._num_released += len(text)
        if not self._waiting:
            return ChoiceDelta(self.index, text, [], finish_reason)
        count = 0
        while count < len(self._waiting) and self._waiting[count].offset < self._num_released:
            count += 1
        tokens, self._waiting = self._waiting[:count], self._waiting[count:]
        return ChoiceDelta(self.index, text, tokens, finish_reason)
