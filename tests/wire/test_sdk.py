"""The official SDK, sync and async, needs no special treatment."""

import asyncio

import httpx
import openai
import pytest

from tests.wire.wire import PROMPT


def test_a_completion(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.completions.create(model=model, prompt=PROMPT, max_tokens=4, temperature=0, logprobs=1, echo=True)
    assert answer.choices[0].text.startswith(PROMPT)
    assert answer.usage is not None
    assert answer.choices[0].logprobs is not None


def test_a_streamed_completion(sdk: openai.OpenAI, model: str) -> None:
    with sdk.completions.create(model=model, prompt=PROMPT, max_tokens=4, stream=True) as stream:
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_a_chat(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hi"}], max_completion_tokens=4, logprobs=True
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None


def test_a_streamed_chat_with_usage(sdk: openai.OpenAI, model: str) -> None:
    with sdk.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


def test_the_stream_helper_assembles_the_message(sdk: openai.OpenAI, model: str) -> None:
    with sdk.chat.completions.stream(
        model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
    plain = sdk.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0)
    assert text == plain.choices[0].message.content


def test_models(sdk: openai.OpenAI, model: str) -> None:
    assert model in [entry.id for entry in sdk.models.list()]
    assert sdk.models.retrieve(model).id == model


def test_errors_become_the_sdk_s_exceptions(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=model, prompt=PROMPT, temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="no-such-model", prompt=PROMPT)
    assert missing.value.code == "model_not_found"


def test_the_request_id_is_there(sdk: openai.OpenAI, model: str) -> None:
    assert sdk.completions.create(model=model, prompt=PROMPT, max_tokens=1)._request_id


async def test_many_async_streams_at_once(async_sdk: openai.AsyncOpenAI, model: str) -> None:
    async def tell(prompt: str) -> str:
        stream = await async_sdk.completions.create(
            model=model, prompt=prompt, max_tokens=8, temperature=0, stream=True
        )
        async with stream:
            return "".join([chunk.choices[0].text async for chunk in stream])

    prompts = [f"{PROMPT}, {number}" for number in range(8)]
    together = await asyncio.gather(*map(tell, prompts))
    assert list(together) == [await tell(prompt) for prompt in prompts]


async def test_an_async_chat(async_sdk: openai.AsyncOpenAI, model: str) -> None:
    answer = await async_sdk.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=4
    )
    assert answer.choices[0].message.content is not None


async def test_a_client_that_leaves_does_not_disturb_the_next(
    async_sdk: openai.AsyncOpenAI, http: httpx.Client, model: str
) -> None:
    for _ in range(4):
        stream = await async_sdk.completions.create(model=model, prompt=PROMPT, max_tokens=64, stream=True)
        await anext(aiter(stream))
        await stream.close()
    answer = await async_sdk.completions.create(model=model, prompt=PROMPT, max_tokens=2)
    assert answer.choices
