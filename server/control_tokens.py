"""Conversations whose text spells control tokens: encodes that text as text, so that a user cannot end a turn."""

import copy
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from distllm.server.chat_template import ChatTemplate, Message


class ControlTokenGuard:
    """transformers' own marking of spelled control tokens, around our rendering: so a template's variables reach
    the template alone, never the tokenizer.

    Encodes with a private copy of the tokenizer, since that changes the tokenizer's state. The copy is made when
    the first such conversation comes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self._original = tokenizer
        self._template = template
        self._copy: PreTrainedTokenizerFast | None = None
        self._lock = threading.Lock()
        self._control_tokens = _control_tokens(tokenizer, template.source)
        longest_first = sorted(self._control_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def is_needed(self, values: Any) -> bool:
        """Whether some string within lists and dicts spells a control token."""
        match values:
            case str():
                return any(token in values for token in self._control_tokens)
            case dict():
                return any(map(self.is_needed, values.values()))
            case list() | tuple():
                return any(map(self.is_needed, values))
        return False

    def encode(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
        check: Callable[[str], None],
    ) -> list[int]:
        """Token ids of the conversation; `check` sees its text before that is encoded. Raises InvalidRequest."""
        marked = mark_control_tokens([messages, dict(variables)], self._pattern)
        prompt = self._template.render(marked[0], add_generation_prompt, continue_final_message, marked[1])
        check(prompt)
        with self._lock, self._template.refusals():
            if self._copy is None:
                self._copy = copy.deepcopy(self._original)
            return list(encode_marked_chat(self._copy, prompt))


def _control_tokens(tokenizer: PreTrainedTokenizerFast, source: str) -> list[str]:
    """Special tokens, and the added ones that the tokenizer lists or the template writes; none that is blank."""
    listed = frozenset(tokenizer.chat_control_tokens or ())
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip() and (token.special or token.content in listed or token.content in source)
    ]
