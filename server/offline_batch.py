"""An offline batch: prompts become plans, plans are run side by side, results come back in order."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from distllm.engine.sampling_params import SamplingParams
from distllm.server.batch_bar import BatchBar
from distllm.server.errors import InvalidRequest
from distllm.server.generation_plan import GenerationPlan, Limits
from distllm.server.offline import PromptResult, complete
from distllm.server.ports import Engine
from distllm.server.protocol.chat import parse_messages
from distllm.server.protocol.fields import Prompt
from distllm.server.tokenizer import Tokenizer

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids. `text` is None where ids or messages were given, `field` is its name in errors."""

    token_ids: list[int]
    text: str | None
    field: str


async def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """Raises InvalidRequest for an empty prompt of a model that has no token to begin a document with."""
    encoded = []
    for number, prompt in enumerate(prompts):
        field = f"prompts[{number}]"
        if isinstance(prompt, str):
            token_ids = await tokenizer.encode(prompt) or _document_start(tokenizer, field)
            encoded.append(EncodedPrompt(token_ids, prompt, field))
        else:
            encoded.append(EncodedPrompt(prompt, None, field))
    return encoded


async def encode_conversations(
    tokenizer: Tokenizer, conversations: Sequence[list[Message]], template_variables: Mapping[str, Any]
) -> list[EncodedPrompt]:
    """Raises InvalidRequest for a wrong message, naming the conversation, or NoChatTemplate."""
    encoded = []
    for number, conversation in enumerate(conversations):
        field = f"conversations[{number}]" if len(conversations) > 1 else "messages"
        try:
            messages = [message.for_template() for message in parse_messages(conversation)]
        except InvalidRequest as error:
            place = f"{field}: " if len(conversations) > 1 else ""
            raise InvalidRequest(f"{place}{error}", field, error.code) from None
        token_ids = await tokenizer.encode_chat(messages, variables=template_variables)
        encoded.append(EncodedPrompt(token_ids, None, field))
    return encoded


def plan_batch(
    prompts: Sequence[EncodedPrompt],
    params: SamplingParams | Sequence[SamplingParams],
    eos_token_ids: tuple[int, ...],
    limits: Limits,
    n: int,
    stop: tuple[str, ...],
    are_defaults: bool = False,
) -> list[GenerationPlan]:
    """A plan for each prompt. `params` are for all or one for each. Raises InvalidRequest before anything runs.

    `are_defaults` says that nobody chose the parameters: then max_tokens yields to the room that a prompt leaves.
    """
    if type(n) is not int or n < 1:
        raise InvalidRequest(f"n must be a whole number of at least 1, not {n!r}", "n")
    each = _each_params(params, len(prompts))
    if len(each) != len(prompts):
        raise InvalidRequest(
            f"sampling_params holds {len(each)} values for {len(prompts)} prompts; give one for each, or just one",
            "sampling_params",
        )
    max_field = None if are_defaults else "max_tokens"
    plans = []
    for prompt, asked in zip(prompts, each, strict=True):
        resolved = _with_ends(asked, eos_token_ids)
        limits.check_params(resolved)
        planned = limits.plan_prompt(prompt.token_ids, prompt.text, resolved, prompt.field, max_field)
        plans.append(GenerationPlan(prompts=(planned,), n=n, num_sampled=n, seed=asked.seed, stop=stop))
    return plans


def _each_params(params: SamplingParams | Sequence[SamplingParams], num_prompts: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [_with_right_types(params)] * num_prompts
    if not isinstance(params, list | tuple) or not all(isinstance(one, SamplingParams) for one in params):
        raise InvalidRequest("sampling_params must be a SamplingParams, or a list of them", "sampling_params")
    return [_with_right_types(one) for one in params]


def _with_right_types(params: SamplingParams) -> SamplingParams:
    """As the engine process will read it. Raises InvalidRequest, naming the field."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        reason, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or "sampling_params"
        raise InvalidRequest(f"sampling_params: {field}: {reason}", field, "invalid_type") from None


async def run_batch(
    engine: Engine, tokenizer: Tokenizer, plans: Sequence[GenerationPlan], max_live: int, bar: BatchBar
) -> list[PromptResult]:
    """Run plans, about `max_live` sequences in the engine at a time. Raises EngineUnavailable when the engine is
    lost."""
    most_sampled = max((plan.num_sampled for plan in plans), default=1)
    places = asyncio.Semaphore(max(1, max_live // most_sampled))

    async def run(plan: GenerationPlan) -> PromptResult:
        async with places:
            result = await complete(engine, tokenizer, plan, bar.add_tokens)
        bar.add_prompt()
        return result

    tasks = [asyncio.create_task(run(plan)) for plan in plans]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _with_ends(params: SamplingParams, eos_token_ids: tuple[int, ...]) -> SamplingParams:
    """Parameters that end at the model's eos tokens, unless they say otherwise."""
    if params.ignore_eos:
        return replace(params, eos_token_ids=())
    return params if params.eos_token_ids else replace(params, eos_token_ids=eos_token_ids)


def _document_start(tokenizer: Tokenizer, field: str) -> list[int]:
    if tokenizer.document_start is None:
        raise InvalidRequest(f"{field} is empty, and this model has no token that begins a document", field)
    return [tokenizer.document_start]
