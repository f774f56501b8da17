"""How each kind of server wants to be asked: which endpoint, which form of prompt, which fields it takes."""

import json
from dataclasses import dataclass
from typing import Literal

from benchmarks.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Dialect:
    """`takes_ids`: prompts as token ids. `takes_ignore_eos`: it knows that field. `takes_stream_options`: it sends
    usage when asked so. Where usage does not come, the chunks are counted."""

    endpoint: Literal["completions", "chat"] = "completions"
    takes_ids: bool = True
    takes_ignore_eos: bool = True
    takes_stream_options: bool = True

    @property
    def path(self) -> str:
        return "/v1/completions" if self.endpoint == "completions" else "/v1/chat/completions"

    @property
    def needs_text(self) -> bool:
        return self.endpoint == "chat" or not self.takes_ids

    def body(self, prompt: Prompt, model: str) -> bytes:
        """The JSON of a greedy, streamed request."""
        fields: dict[str, object] = {
            "model": model,
            "max_tokens": prompt.output_len,
            "temperature": 0,
            "stream": True,
            **self._input(prompt),
        }
        if self.takes_ignore_eos:
            fields["ignore_eos"] = True
        if self.takes_stream_options:
            fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields, separators=(",", ":")).encode()

    def _input(self, prompt: Prompt) -> dict[str, object]:
        if not self.needs_text:
            return {"prompt": list(prompt.token_ids)}
        assert prompt.text is not None
        if self.endpoint == "chat":
            return {"messages": [{"role": "user", "content": prompt.text}]}
        return {"prompt": prompt.text}


DIALECTS = {
    "vllm": Dialect(),
    "openai": Dialect(takes_ids=False, takes_ignore_eos=False),
    "openai-chat": Dialect(endpoint="chat", takes_ids=False, takes_ignore_eos=False),
    "transformers": Dialect(takes_ids=False, takes_ignore_eos=False, takes_stream_options=False),
}
"""`vllm` is ours too. `transformers serve` refuses unknown fields, takes text alone, and sends usage unasked."""
