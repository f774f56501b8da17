"""Text to token ids and back, for one checkpoint, without torch. Safe to use from several threads.

Knows nothing of requests; the engine never sees it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from distllm.server.chat_template import ChatTemplate, Message, NoChatTemplate, find_template_source
from distllm.server.control_tokens import ControlTokenGuard
from distllm.server.detokenizer import ByteDetokenizer, WindowDetokenizer
from distllm.server.slow_tokenizer import fast_tokenizer_directory
from distllm.server.token_bytes import find_byte_scheme

_INLINE_CHARACTERS = 4096
"""Texts up to this length are encoded on the event loop; a thread costs more."""


class Tokenizer:
    """One checkpoint's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self._backend: Backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._scheme = find_byte_scheme(self._backend)
        self._special_ids = frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self._bytes: dict[int, bytes] = {}
        self._template = self._guard = None
        if chat_template is not None:
            self._template = ChatTemplate(chat_template, tokenizer.special_tokens_map)
            self._guard = ControlTokenGuard(tokenizer, self._template)

    @classmethod
    def load(cls, directory: Path, chat_template: str | None = None) -> "Tokenizer":
        """Read a checkpoint directory. `chat_template` replaces the checkpoint's. Raises TokenizerError."""
        with fast_tokenizer_directory(directory) as fast_directory:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(fast_directory)
            return cls(tokenizer, chat_template or find_template_source(directory))

    @property
    def document_start(self) -> int | None:
        """The token that stands for an empty prompt: bos, else eos."""
        bos: int | None = self._tokenizer.bos_token_id
        eos: int | None = self._tokenizer.eos_token_id
        return eos if bos is None else bos

    @property
    def chat_template(self) -> str | None:
        return None if self._template is None else self._template.source

    def special_token(self, role: str) -> str | None:
        """The text of the token that plays a role: bos, eos, pad or unk."""
        token = getattr(self._tokenizer, f"{role}_token")
        return None if token is None else str(token)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; a long one is encoded in a thread."""
        if len(text) <= _INLINE_CHARACTERS:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        return await asyncio.to_thread(self._encode_long, text, add_special_tokens)

    async def encode_chat(
        self,
        messages: list[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation. Control tokens inside a message are text, never control.

        Raises NoChatTemplate or InvalidRequest.
        """
        encode = partial(
            self._encode_chat, messages, add_generation_prompt, continue_final_message, variables or {}
        )
        if _is_short([messages, variables]):
            return encode()
        return await asyncio.to_thread(encode)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, as Hugging Face decodes it."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a special token, its name."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def detokenizer(self, skip_special_tokens: bool = True) -> ByteDetokenizer | WindowDetokenizer:
        """A fresh incremental detokeniser."""
        if self._scheme is None:
            return WindowDetokenizer(partial(self.decode, skip_special_tokens=skip_special_tokens))
        bytes_of = self._visible_bytes if skip_special_tokens else self.token_bytes
        return ByteDetokenizer(bytes_of, self._scheme.num_stripped)

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special_ids else self.token_bytes(token_id)

    def _find_bytes(self, token_id: int) -> bytes:
        if self._scheme is None:
            return self.decode([token_id]).encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._scheme.token_bytes(token)

    def _encode_long(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # encode_batch lets go of the interpreter's lock, encode does not
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def _encode_chat(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> list[int]:
        if self._template is None or self._guard is None:
            raise NoChatTemplate
        conversation = (messages, add_generation_prompt, continue_final_message, variables)
        if self._guard.is_needed([messages, variables]):
            return self._guard.encode(*conversation)
        return self._encode_long(self._template.render(*conversation), add_special_tokens=False)


def _is_short(values: Any) -> bool:
    """Whether all strings within lists and dicts have at most _INLINE_CHARACTERS together, and are as few."""
    room = _INLINE_CHARACTERS
    pending = [values]
    while pending:
        value = pending.pop()
        room -= 1 + len(value) if isinstance(value, str | list | dict) else 1
        if room < 0:
            return False
        if isinstance(value, list | dict):
            pending.extend(value.values() if isinstance(value, dict) else value)
    return True
