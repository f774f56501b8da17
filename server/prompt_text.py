"""A prompt's text and where in it each token begins, read once for all choices of the prompt."""

import asyncio
from dataclasses import dataclass

from distllm.server.generation_plan import GenerationPlan, PromptPlan
from distllm.server.tokenizer import Tokenizer

_INLINE_TOKENS = 4096
"""Prompts up to this length are read on the event loop; a thread costs more."""


@dataclass(frozen=True, slots=True)
class PromptText:
    """`text` is what an echo repeats and what offsets count from; empty where neither is wanted. `offsets` has a
    place for each token where the plan echoes with logprobs, and is empty otherwise."""

    text: str = ""
    offsets: tuple[int, ...] = ()


async def read_prompt(tokenizer: Tokenizer, plan: GenerationPlan, prompt: PromptPlan) -> PromptText:
    """As `read_prompt_now`; a long prompt is read in a thread."""
    if len(prompt.token_ids) <= _INLINE_TOKENS:
        return read_prompt_now(tokenizer, plan, prompt)
    return await asyncio.to_thread(read_prompt_now, tokenizer, plan, prompt)


def read_prompt_now(tokenizer: Tokenizer, plan: GenerationPlan, prompt: PromptPlan) -> PromptText:
    """The text that a plan needs of one of its prompts: what the client sent, or else its tokens' text."""
    wants_offsets = plan.num_top_logprobs is not None
    if not plan.echo and not wants_offsets:
        return PromptText()
    if prompt.text is not None and not (plan.echo and wants_offsets):
        return PromptText(prompt.text)
    offsets, pieces, end = [], [], 0
    detokenizer = tokenizer.detokenizer(plan.skip_special_tokens or prompt.text is not None)
    for token_id in prompt.token_ids:
        offsets.append(end)
        piece = detokenizer.push(token_id)
        if prompt.text is not None and tokenizer.is_special(token_id):
            piece = _spelled(tokenizer, token_id, prompt.text, end)
        pieces.append(piece)
        end += len(piece)
    return PromptText("".join(pieces) if prompt.text is None else prompt.text, tuple(offsets))


def _spelled(tokenizer: Tokenizer, token_id: int, text: str, start: int) -> str:
    """A special token's own text where the client wrote it; "" where the tokenizer added it."""
    name = tokenizer.token_bytes(token_id).decode(errors="replace")
    return name if text.startswith(name, start) else ""
