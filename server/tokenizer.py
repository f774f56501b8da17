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

from distllm.server.chat_template import ChatTemplate, Message, NoChatTemplate, TemplateSource, find_template
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
        self._guard = ControlTokenGuard(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self._template = (
            ChatTemplate(chat_template, tokenizer.special_tokens_map) if chat_template is not None else None
        )

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
        if self._template is None:
            raise NoChatTemplate
        encode = partial(
            self._encode_chat,
            self._template,
            messages,
            add_generation_prompt,
            continue_final_message,
            variables or {},
        )
        if sum(len(message["content"]) for message in messages) <= _INLINE_CHARACTERS:
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
        template: ChatTemplate,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> list[int]:
        if self._guard.is_needed(messages):
            return self._guard.encode(template, messages, add_generation_prompt, continue_final_message, variables)
        prompt = template.render(messages, add_generation_prompt, continue_final_message, variables)
        return self._encode_long(prompt, add_special_tokens=False)
