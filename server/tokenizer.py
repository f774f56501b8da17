"""Text to token ids and back, for one checkpoint, without torch. Safe to use from several threads.

Knows nothing of requests; the engine never sees it.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from distllm.server.chat_template import ChatTemplate, Message, NoChatTemplate, TemplateSource, find_template
from distllm.server.control_tokens import ControlTokenGuard
from distllm.server.detokenizer import ByteDetokenizer, WindowDetokenizer
from distllm.server.slow_tokenizer import fast_tokenizer_directory
from distllm.server.token_bytes import find_byte_scheme

Conversation = tuple[list[Message], bool, bool, Mapping[str, Any]]

_INLINE_CHARACTERS = 4096
"""Texts up to this length are encoded on the event loop; a thread costs more."""


class TextTooLong(Exception):
    """A text has more tokens than the caller has use for; known from its length alone."""

    def __init__(self, least_tokens: int) -> None:
        super().__init__(f"the text has {least_tokens} tokens at least")
        self.least_tokens = least_tokens


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
        self._longest_token = self._find_longest_token()
        self._template = self._guard = None
        if chat_template is not None:
            self._template = ChatTemplate(chat_template, tokenizer.special_tokens_map)
            self._guard = ControlTokenGuard(tokenizer, self._template)

    @classmethod
    def load(cls, directory: Path, template_file: Path | None = None) -> "Tokenizer":
        """Read a checkpoint directory. `template_file` replaces its chat template. Raises TokenizerError."""
        template = find_template(directory) if template_file is None else TemplateSource.read(template_file)
        if template is not None:
            template.check()
        with fast_tokenizer_directory(directory) as fast_directory:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(fast_directory)
            return cls(tokenizer, None if template is None else template.text)

    @property
    def document_start(self) -> int | None:
        """The token that stands for an empty prompt: bos, else eos."""
        bos: int | None = self._tokenizer.bos_token_id
        return self.eos_token_id if bos is None else bos

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a document, where the tokenizer names one."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    @property
    def chat_template(self) -> str | None:
        return None if self._template is None else self._template.source

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token as the tokenizer spells it, and its id."""
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocabulary

    def special_token(self, role: str) -> str | None:
        """The text of the token that plays a role: bos, eos, pad or unk."""
        token = getattr(self._tokenizer, f"{role}_token")
        return None if token is None else str(token)

    async def encode(self, text: str, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Token ids of a text; a long one is encoded in a thread.

        Raises TextTooLong, before anything is encoded, where there would be more than `max_tokens` for certain.
        """
        self._check_length(text, max_tokens)
        if len(text) <= _INLINE_CHARACTERS:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        return await asyncio.to_thread(self._encode_long, text, add_special_tokens)

    async def encode_chat(
        self,
        messages: list[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation. Control tokens inside a message are text, never control.

        Raises NoChatTemplate or InvalidRequest, and TextTooLong as `encode` does.
        """
        conversation = (messages, add_generation_prompt, continue_final_message, variables or {})
        encode = partial(self._encode_chat, conversation, max_tokens)
        if _is_short([messages, variables]):
            return encode()
        return await asyncio.to_thread(encode)

    async def decode_long(self, token_ids: Sequence[int]) -> str:
        """As `decode`, in a thread where there are many."""
        if len(token_ids) <= _INLINE_CHARACTERS:
            return self.decode(token_ids)
        return await asyncio.to_thread(self.decode, token_ids)

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

    def _encode_chat(self, conversation: Conversation, max_tokens: int | None) -> list[int]:
        if self._template is None or self._guard is None:
            raise NoChatTemplate
        messages, _, _, variables = conversation
        if self._guard.is_needed([messages, variables]):
            return self._guard.encode(*conversation, lambda prompt: self._check_length(prompt, max_tokens))
        prompt = self._template.render(*conversation)
        self._check_length(prompt, max_tokens)
        return self._encode_long(prompt, add_special_tokens=False)

    def _check_length(self, text: str, max_tokens: int | None) -> None:
        if max_tokens is None or self._longest_token is None:
            return
        least_tokens = -(-len(text) // self._longest_token)
        if least_tokens > max_tokens:
            raise TextTooLong(least_tokens)

    def _find_longest_token(self) -> int | None:
        """Most characters of a text that one token stands for; None where a tokenizer may drop characters."""
        longest_composed = _longest_composed(self._backend)
        if self._scheme is None or longest_composed is None:
            return None
        return longest_composed * max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)


def _longest_composed(backend: Backend) -> int | None:
    """Most characters that a tokenizer's normaliser makes one of; None where that has no bound that we know."""
    state = {} if backend.normalizer is None else json.loads(backend.normalizer.__getstate__())
    longest = 1
    for step in state.get("normalizers", [state] if state else []):
        match step:
            case {"type": "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(old) <= len(new):
                pass
            case {"type": "NFC"}:
                longest = 4
            case _:
                return None
    return longest


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
