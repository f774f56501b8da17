"""Token ids to text, one token at a time, without ever emitting half a character. O(1) a token, amortised.

Half a character waits for its other half; where the tokens end before that comes, it is dropped.

Knows nothing of stop strings or requests.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

_MAX_CHARACTER_BYTES = 4
_UTF8 = codecs.getincrementaldecoder("utf-8")
BytesOf = Callable[[int], bytes]
Decode = Callable[[list[int]], str]


class Detokenizer(Protocol):
    """`push` returns the text that a token completed, `flush` whole characters that still waited."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class ByteDetokenizer:
    """For tokenizers whose tokens are bytes: a UTF-8 decoder over their bytes.

    Broken bytes become U+FFFD once it is certain that they are broken. Up to `num_stripped` spaces are dropped at
    the start of the text.
    """

    def __init__(self, bytes_of: BytesOf, num_stripped: int = 0) -> None:
        self._bytes_of = bytes_of
        self._decoder = _UTF8(errors="replace")
        self._num_to_strip = num_stripped

    def push(self, token_id: int) -> str:
        text = self._decoder.decode(self._bytes_of(token_id))
        return self._strip(text) if self._num_to_strip and text else text

    def flush(self) -> str:
        self._decoder.reset()
        return ""

    def prime(self, prompt_ids: Sequence[int]) -> None:
        """Continue a prompt that is not part of the text, in the middle of a character where it ends in one."""
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = self._bytes_of(token_id) + tail
            if len(tail) >= _MAX_CHARACTER_BYTES:
                break
        if tail:
            self._num_to_strip = 0
            self._decoder.decode(tail[-_MAX_CHARACTER_BYTES:])

    def _strip(self, text: str) -> str:
        stripped = text
        while self._num_to_strip and stripped.startswith(" "):
            stripped = stripped[1:]
            self._num_to_strip -= 1
        self._num_to_strip = self._num_to_strip if not stripped else 0
        return stripped


class WindowDetokenizer:
    """For every other tokenizer: decodes a short window of tokens twice and takes the difference.

    The window starts at a token after which the text was whole, so that rules about neighbours (spaces between
    words) see the left neighbour. Text that ends in U+FFFD may be half a character and waits, but for no more than
    `_MAX_CHARACTER_BYTES` tokens.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._num_context = 0  # ids[:num_context] are the left neighbours, already emitted

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        new_text = self._new_text()
        num_new = len(self._ids) - self._num_context
        if not new_text or (new_text.endswith("�") and num_new < _MAX_CHARACTER_BYTES):
            return ""
        self._advance()
        return new_text

    def flush(self) -> str:
        new_text = self._new_text()
        self._advance()
        return new_text.rstrip("�")

    def prime(self, prompt_ids: Sequence[int]) -> None:
        """Continue a prompt that is not part of the text, its last token that shows as the left neighbour."""
        num_ids = _MAX_CHARACTER_BYTES
        while num_ids < len(prompt_ids) and not self._decode(list(prompt_ids[-num_ids:])):
            num_ids *= 2
        self._ids = list(prompt_ids[-num_ids:])
        self._num_context = len(self._ids)

    def _new_text(self) -> str:
        known = self._decode(self._ids[: self._num_context])
        return self._decode(self._ids)[len(known) :]

    def _advance(self) -> None:
        self._ids = self._ids[self._num_context :] or self._ids
        self._num_context = len(self._ids)
