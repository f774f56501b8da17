"""How tokens are chosen for one request: values and their ranges. Knows nothing of tensors or text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_LOGPROBS = 20
_MASK_64 = (1 << 64) - 1


class InvalidParameter(ValueError):
    """A sampling parameter is out of range. `field` is its name, `remedy` what is accepted."""

    def __init__(self, field: str, remedy: str) -> None:
        super().__init__(f"{field} {remedy}")
        self.field = field
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request, under the names of vLLM and OpenAI.

    `temperature` 0 is greedy. `top_k` None keeps every token. `max_tokens` None runs to the end of the context.
    `eos_token_ids` come from the model's generation_config and are empty once `ignore_eos` is resolved.
    `logprobs` n asks for the chosen token's log-probability and the n most likely ones (0: the chosen alone);
    `prompt_logprobs` the same for each prompt token. Raises InvalidParameter.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check_range("temperature", 0.0, 2.0)
        self._check_range("top_p", 0.0, 1.0, low_is_open=True)
        self._check_range("min_p", 0.0, 1.0)
        self._check_range("presence_penalty", -2.0, 2.0)
        self._check_range("frequency_penalty", -2.0, 2.0)
        self._check_range("repetition_penalty", 0.0, math.inf, low_is_open=True)
        if self.top_k is not None and self.top_k < 1:
            raise InvalidParameter("top_k", "must be at least 1, or null to keep every token")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InvalidParameter("max_tokens", "must be at least 0")
        if self.min_tokens < 0:
            raise InvalidParameter("min_tokens", "must be at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameter("min_tokens", f"must not exceed max_tokens, which is {self.max_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LOGPROBS:
                raise InvalidParameter(name, f"must be between 0 and {MAX_LOGPROBS}")
        for token_id, bias in self.logit_bias.items():
            if token_id < 0 or not -100.0 <= bias <= 100.0:
                raise InvalidParameter("logit_bias", "must map token ids to numbers between -100 and 100")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """Whether choosing a token depends on which tokens came before it."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def _check_range(self, name: str, low: float, high: float, low_is_open: bool = False) -> None:
        value: float = getattr(self, name)
        above = value > low if low_is_open else value >= low
        if not (above and value <= high and math.isfinite(value)):
            opening = "above" if low_is_open else "at least"
            ceiling = "" if high == math.inf else f" and at most {high:g}"
            raise InvalidParameter(name, f"must be a finite number {opening} {low:g}{ceiling}")


def sequence_seed(request_seed: int, index: int) -> int:
    """Seed in [0, 2**64) of the request's sequence `index`. Index 0 keeps the request's own seed.

    The others are mixed by splitmix64 (Steele, Lea, Flood 2014), so that neighbouring seeds do not share them.
    """
    if index == 0:
        return request_seed & _MASK_64
    z = (request_seed + index * 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return z ^ (z >> 31)
