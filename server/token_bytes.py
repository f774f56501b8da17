"""The bytes that a token stands for, for the two kinds of tokenizer whose tokens are bytes: byte-level BPE, and
sentencepiece style with byte fallback. Other decoders have no such table."""

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_FALLBACK_STEPS = ("Replace", "ByteFallback", "Fuse")


def byte_level_alphabet() -> dict[str, int]:
    """Character to byte of GPT-2's byte-level alphabet: printable bytes are themselves, others 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


@dataclass(frozen=True, slots=True)
class ByteScheme:
    """How token strings map to bytes. `replacements` apply to sentencepiece style; `alphabet` to byte-level.

    `num_stripped` spaces are dropped at the start of a text.
    """

    alphabet: dict[str, int] | None
    replacements: tuple[tuple[str, str], ...] = ()
    num_stripped: int = 0

    def token_bytes(self, token: str) -> bytes:
        """Bytes of one token string."""
        if self.alphabet is not None:
            return self._byte_level(token, self.alphabet)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes((int(match[1], 16),))
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()

    @staticmethod
    def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
        try:
            return bytes([alphabet[character] for character in token])
        except KeyError:
            return token.encode()  # an added token outside the alphabet stands for itself


def find_byte_scheme(tokenizer: Tokenizer) -> ByteScheme | None:
    """The scheme of a tokenizer's decoder, None where tokens cannot be told as bytes one by one."""
    if tokenizer.decoder is None:
        return None
    match json.loads(tokenizer.decoder.__getstate__()):
        case {"type": "ByteLevel"} | {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}:
            return ByteScheme(byte_level_alphabet())
        case {"type": "Sequence", "decoders": [*steps]}:
            return _fallback_scheme(steps)
        case _:
            return None


def _fallback_scheme(steps: list[dict[str, Any]]) -> ByteScheme | None:
    kinds = [step["type"] for step in steps]
    strips = steps[3:]
    if "ByteFallback" not in kinds or tuple(kinds[:3]) != _FALLBACK_STEPS or len(strips) > 1:
        return None
    match steps[0]["pattern"]:
        case {"String": str(old)}:
            replacement = (old, steps[0]["content"])
        case _:
            return None
    match strips:
        case []:
            return ByteScheme(None, (replacement,))
        case [{"type": "Strip", "content": " ", "start": int(start), "stop": 0}]:
            return ByteScheme(None, (replacement,), start)
        case _:
            return None
