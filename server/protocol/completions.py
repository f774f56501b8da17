"""The body of POST /v1/completions."""

from typing import Annotated, ClassVar

from pydantic import Field, PlainValidator

from distllm.server.errors import InvalidRequest
from distllm.server.protocol.fields import Prompt, parse_prompts
from distllm.server.protocol.sampling import NumChoices, SamplingFields
from distllm.server.protocol.validation import Unsupported

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(SamplingFields):
    """OpenAI's legacy completion. A null prompt is the start of a document, as there."""

    prompt: Annotated[list[Prompt], PlainValidator(parse_prompts)]
    best_of: NumChoices | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    unsupported: ClassVar[Unsupported] = {
        "suffix": ("",),
        "tools": ([],),
        "tool_choice": ("none",),
        "response_format": ({"type": "text"},),
    }

    @property
    def num_sampled(self) -> int:
        """Sequences to sample for a prompt; the best `n` of them are returned."""
        return self.best_of or self.n or 1

    def check(self) -> None:
        """Rules between fields. Raises InvalidRequest."""
        self.check_stream_fields()
        n = self.n or 1
        if self.num_sampled < n:
            raise InvalidRequest(f"best_of must be at least n, which is {n}", "best_of")
        if self.stream and self.num_sampled > n:
            raise InvalidRequest("best_of above n cannot be streamed: the best are known at the end", "best_of")
