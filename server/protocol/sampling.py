"""The sampling fields that completions and chat share, and how they become SamplingParams."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from distllm.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from distllm.server.errors import InvalidRequest
from distllm.server.protocol.fields import parse_logit_bias, parse_stop, parse_stop_token_ids
from distllm.server.protocol.validation import RequestModel
from distllm.server.settings import SamplingDefaults

MAX_N = 128
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
NumChoices = Annotated[int, Field(ge=1, le=MAX_N)]


class StreamOptions(RequestModel):
    """`include_usage` adds usage to the stream. Obfuscation is not done: only its absence may be asked for."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(RequestModel):
    """OpenAI's sampling fields, and vLLM's extensions under vLLM's names. None means the model's default.

    `top_k` -1 and 0 mean off, as in vLLM. `user`, `store`, `metadata`, `service_tier`, `safety_identifier` and
    `prompt_cache_key` change no answer: they are checked and have no effect.
    """

    model: str
    n: NumChoices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], PlainValidator(parse_logit_bias)] = Field(default_factory=dict)
    seed: Int64 | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(parse_stop)] = ()

    top_k: Int64 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int64 | None = None
    stop_token_ids: Annotated[tuple[int, ...], PlainValidator(parse_stop_token_ids)] = ()
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_fields(self) -> None:
        """Raises InvalidRequest when stream_options come without stream, or prompt_logprobs with it, as in vLLM."""
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("prompt_logprobs are not available when stream is true", "prompt_logprobs")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed when stream is true", "stream_options")

    def sampling_params(self, defaults: SamplingDefaults, **endpoint: Any) -> SamplingParams:
        """Parameters of this request over the model's defaults. Raises InvalidParameter.

        `endpoint` holds what each endpoint words differently: max_tokens, logprobs, prompt_logprobs.
        """
        return SamplingParams(
            min_tokens=self.min_tokens or 0,
            temperature=_first(self.temperature, defaults.temperature),
            top_p=_first(self.top_p, defaults.top_p),
            top_k=_top_k(self.top_k, defaults.top_k),
            min_p=_first(self.min_p, defaults.min_p),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=_first(self.repetition_penalty, defaults.repetition_penalty),
            logit_bias=self.logit_bias,
            stop_token_ids=self.stop_token_ids,
            eos_token_ids=() if self.ignore_eos else defaults.eos_token_ids,
            ignore_eos=bool(self.ignore_eos),
            seed=self.seed,
            **endpoint,
        )


def _first(asked: float | None, default: float) -> float:
    return float(default if asked is None else asked)


def _top_k(asked: int | None, default: int | None) -> int | None:
    if asked is None:
        return default
    return None if asked in (-1, 0) else asked
