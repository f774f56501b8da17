"""Conversations whose text spells control tokens: encodes that text as text, so that a user cannot end a turn."""

import copy
import threading
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast

from distllm.server.chat_template import ChatTemplate, Message
from distllm.server.errors import InvalidRequest


class ControlTokenGuard:
    """transformers' own sanitising, on a private copy of the tokenizer since it changes the tokenizer's state.

    The copy is made when the first such conversation comes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._original = tokenizer
        self._copy: PreTrainedTokenizerFast | None = None
        self._lock = threading.Lock()
        contents = (token.content for token in tokenizer.added_tokens_decoder.values())
        self._control_tokens = [text for text in contents if text.strip()]

    def is_needed(self, messages: list[Message]) -> bool:
        """Whether some message spells a control token."""
        return any(
            token in text for message in messages for text in message.values() for token in self._control_tokens
        )

    def encode(
        self,
        template: ChatTemplate,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> list[int]:
        """Token ids of the conversation. Raises InvalidRequest."""
        with self._lock, template.refusals():
            if self._copy is None:
                self._copy = copy.deepcopy(self._original)
            ids = self._copy.apply_chat_template(
                template.prepare(messages),
                chat_template=template.source,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                sanitize_control_tokens=True,
                return_dict=False,
                **variables,
            )
        if not isinstance(ids, list):
            raise InvalidRequest("the conversation cannot be encoded", "messages")
        return [int(token_id) for token_id in ids]
