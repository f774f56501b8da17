"""The sequences of one prompt of a request: from the engine's outputs to deltas of their choices."""

from distllm.engine.interface import TokenLogprobs
from distllm.scheduler.messages import SequenceOutput
from distllm.server.choice import Choice, ChoiceDelta
from distllm.server.errors import GenerationFailed
from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.metrics import RequestObserver
from distllm.server.ports import OutputStream


class PromptRun:
    """Echoes the prompt before the first output. Outputs that overtake the prompt's logprobs wait for them."""

    def __init__(
        self,
        choices: list[Choice],
        stream: OutputStream,
        observer: RequestObserver,
        plan: GenerationPlan,
        prompt: PromptPlan,
    ) -> None:
        self.choices = choices
        self.stream = stream
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._observer = observer
        self._owes_echo = plan.echo
        self._awaits_scores = prompt.params.prompt_logprobs is not None and len(prompt.token_ids) > 1
        self._held: list[SequenceOutput] = []

    def accept(self, output: SequenceOutput) -> list[ChoiceDelta]:
        """What an output adds. Raises GenerationFailed."""
        self._observer.on_output(output)
        if output.num_cached_tokens is not None:
            self.num_cached_tokens = output.num_cached_tokens
        if self._awaits_scores and output.prompt_logprobs is None and output.error is None:
            self._held.append(output)
            return []
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        outputs, self._held, self._awaits_scores = [output, *self._held], [], False
        deltas = self._echoes(output)
        for each in outputs:
            deltas.extend(self._accept_tokens(each))
        return deltas

    def _echoes(self, output: SequenceOutput) -> list[ChoiceDelta]:
        if not self._owes_echo or output.error is not None:
            return []
        self._owes_echo = False
        return [choice.echo(output.prompt_logprobs or []) for choice in self.choices]

    def _accept_tokens(self, output: SequenceOutput) -> list[ChoiceDelta]:
        choice = self.choices[output.index]
        if choice.is_finished:
            return []
        try:
            delta = choice.accept(output)
        except GenerationFailed:
            self._observer.on_finished(output.index, "error")
            raise
        if delta.finish_reason is not None:
            self._observer.on_finished(output.index, delta.finish_reason)
            if output.finish_reason is None:
                self.stream.abort_sequence(output.index)
        return [delta]
