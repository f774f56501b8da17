"""The embedded model's tokenizer: a byte-level BPE trained on the corpus, and its chat template.

Every digit is a token of its own, so that numbers look the same wherever they stand; every byte has a token, so
that any text round-trips.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from distllm.engine.embedded.corpus import Chat, Document, Story, text_of, training_documents

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"

CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""ChatML: any role, content as a string or as text parts, no system message of its own."""


def train_tokenizer(vocab_size: int, num_documents: int, max_length: int, seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens, learned from the first `num_documents` of the corpus."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = islice(training_documents(f"tokenizer {seed}"), num_documents)
    tokenizer.train_from_iterator((text_of(document) for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[int, bool]]:
    """The document's token ids, END_OF_TEXT last, each with whether the model should learn to say it.

    Of a chat that is what the assistant says, up to and with the end of its turn.
    """
    for text, is_learned in _spans(document):
        for token_id in tokenizer.encode(text, add_special_tokens=False):
            yield token_id, is_learned


def _spans(document: Document) -> Iterator[tuple[str, bool]]:
    match document:
        case Story(text):
            yield text + END_OF_TEXT, True
        case Chat(messages):
            for message in messages:
                yield f"{TURN_START}{message.role}\n", False
                yield message.content + TURN_END, message.role == "assistant"
                yield "\n", False
            yield END_OF_TEXT, False
