"""The bodies of POST /tokenize and /detokenize, and their answers; the shapes are vLLM's."""

from typing import Annotated

import msgspec
from pydantic import PlainValidator

from distllm.server.protocol.chat import ChatPrompt
from distllm.server.protocol.fields import TokenIds, parse_token_ids_field
from distllm.server.protocol.validation import RequestModel


class TokenizeTextRequest(RequestModel):
    """Tokenise a plain prompt."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatPrompt):
    """Tokenise a conversation through the chat template."""

    model: str | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestModel):
    """Turn token ids into text; special tokens are shown."""

    model: str | None = None
    tokens: Annotated[TokenIds, PlainValidator(parse_token_ids_field)]


class TokenizeResponse(msgspec.Struct, frozen=True):
    """`token_strs` are the tokens' texts when asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfo(msgspec.Struct, frozen=True):
    """What a client must know to prepare prompts itself; lm-eval asks for it. Tokens are given by their text."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """The text under vLLM's name."""

    prompt: str
