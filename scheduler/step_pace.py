"""What steps take, by what they carry: figures that tell how fast tokens come and prompts are read."""

from typing import TypedDict

from distllm.engine.interface import StepInput


class PaceTotals(TypedDict):
    """Fields of EngineStats."""

    decode_steps_total: int
    decode_sequences_total: int
    decode_s_total: float
    prefill_steps_total: int
    prefill_tokens_total: int
    prefill_s_total: float


class StepPace:
    """Seconds that several steps under way have in common are those of the one that ends first."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._num_decodes = self._num_sequences = self._num_prefills = self._num_prefill_tokens = 0
        self._decode_s = self._prefill_s = 0.0

    def begin(self, now_s: float) -> None:
        """The first step is under way, and none was before."""
        self._since_s = now_s

    def end_step(self, step: StepInput, now_s: float, num_under_way: int) -> None:
        """`num_under_way` counts this step as well."""
        elapsed_s, self._since_s = now_s - self._since_s, now_s
        lengths = [len(chunk.token_ids) for chunk in step.chunks]
        num_prompt_tokens = sum(length for length in lengths if length > 1)
        if 1 in lengths:
            self._num_decodes += 1
            self._num_sequences += lengths.count(1) * num_under_way
            self._decode_s += elapsed_s * num_under_way
        if num_prompt_tokens:
            self._num_prefills += 1
            self._num_prefill_tokens += num_prompt_tokens
            self._prefill_s += elapsed_s

    def totals(self) -> PaceTotals:
        return PaceTotals(
            decode_steps_total=self._num_decodes,
            decode_sequences_total=self._num_sequences,
            decode_s_total=self._decode_s,
            prefill_steps_total=self._num_prefills,
            prefill_tokens_total=self._num_prefill_tokens,
            prefill_s_total=self._prefill_s,
        )
