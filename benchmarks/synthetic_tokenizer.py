"""A tokenizer of any size whose every token has text of its own, made by rule and not by training.

A random model answers with any of its tokens, and a server that finds no text for one has nothing to stream.
"""

from collections.abc import Iterator
from itertools import chain, islice, product
from string import ascii_lowercase as letters

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

END_OF_TEXT = "<|endoftext|>"
_SPACE = "Ġ"


def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE with `vocab_size` tokens: 256 bytes, words of up to three letters, then longer pieces.

    A space and three lower-case letters are one token, so a text of n such words is n tokens. The last token is
    END_OF_TEXT. Raises ValueError outside [20000, 450000].
    """
    if not 20_000 <= vocab_size <= 450_000:
        raise ValueError("vocab_size must be between 20000 and 450000")
    alphabet = sorted(ByteLevel.alphabet())
    merges = list(islice(_merges(), vocab_size - len(alphabet) - 1))
    tokens = alphabet + [left + right for left, right in merges]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer


def three_letter_words() -> range:
    """Ids of the tokens that are a space and three letters: any sequence of them reads back as itself."""
    first = 256 + len(letters) + len(letters) ** 2
    return range(first, first + len(letters) ** 3)


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs in order of rank: words with their space first, so that nothing else claims their letters."""
    words = ((_SPACE + a, b) for a, b in product(letters, repeat=2))
    long_words = ((_SPACE + a + b, c) for a, b, c in product(letters, repeat=3))
    pieces = ((a, b) for a, b in product(letters, repeat=2))
    long_pieces = ((a + b, c) for a, b, c in product(letters, repeat=3))
    longest = ((a + b + c, d) for a, b, c, d in product(letters, repeat=4))
    return chain(((_SPACE, a) for a in letters), words, long_words, pieces, long_pieces, longest)
