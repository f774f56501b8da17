"""POST /v1/completions over an engine whose every token is known."""

import itertools
from typing import Any

import httpx
import pytest

from distllm.engine.sampling_params import SamplingParams
from distllm.server.app import create_app
from distllm.server.protocol.completions import CompletionRequest
from distllm.server.settings import FrontEndSettings, SamplingDefaults
from distllm.server.tokenizer import Tokenizer
from tests.server.fake_engine import FakeEngine, fake_logprob
from tests.server.sse import payloads

PROMPT = "Once upon a time"


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT} | body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **body: Any) -> list[Any]:
    body = {"model": "tiny", "prompt": PROMPT, "stream": True} | body
    return payloads(await client.post("/v1/completions", json=body))


def says(text: str, tokenizer: Tokenizer) -> Any:
    """A script under which every sequence says `text`."""
    ids = tokenizer._backend.encode(text, add_special_tokens=False).ids
    return lambda request, index: ids


async def test_an_answer_has_openai_s_fields(client: httpx.AsyncClient) -> None:
    answer = await complete(client, max_tokens=4)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["choices"] == [{"text": PROMPT, "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_sixteen_tokens_are_the_default(client: httpx.AsyncClient) -> None:
    assert (await complete(client))["usage"]["completion_tokens"] == 16


async def test_the_default_length_yields_to_the_room_that_a_prompt_leaves(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    room = 5
    answer = await complete(client, prompt=[7] * (engine.info.max_model_len - room))
    assert answer["usage"]["completion_tokens"] == room
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_checkpoint_s_default_length_yields_to_the_context(
    engine: FakeEngine, byte_level: Tokenizer, path: str
) -> None:
    app = create_app(engine, byte_level, FrontEndSettings(model_names=("tiny",)), SamplingDefaults(max_tokens=2048))
    field = {"prompt": "fox"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "fox"}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        response = await client.post(path, json={"model": "tiny", **field})
    assert response.json()["usage"]["total_tokens"] == engine.info.max_model_len


async def test_the_four_prompt_forms_give_the_same_text(client: httpx.AsyncClient, byte_level: Tokenizer) -> None:
    ids = await byte_level.encode(PROMPT)
    answers = [await complete(client, prompt=form) for form in (PROMPT, [PROMPT], ids, [ids])]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1


async def test_null_is_accepted_for_every_optional_field(client: httpx.AsyncClient) -> None:
    fields = {*CompletionRequest.model_fields, *CompletionRequest.unsupported} - {"model", "prompt"}
    assert await complete(client, **dict.fromkeys(fields))


@pytest.mark.parametrize(("n", "most"), [(1, 7), (2, 4), (7, 1)])
async def test_more_prompts_than_the_engine_ever_takes_are_refused_before_any_is_submitted(
    engine: FakeEngine, byte_level: Tokenizer, n: int, most: int
) -> None:
    app = create_app(engine, byte_level, FrontEndSettings(model_names=("tiny",), max_live=7))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        await complete(client, prompt=["a"] * most, n=n, max_tokens=1)
        engine.requests.clear()
        body = {"model": "tiny", "prompt": ["a"] * (most + 1), "n": n, "max_tokens": 1}
        response = await client.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert f"at most {most} prompts" in response.json()["error"]["message"]
    assert engine.requests == []


async def test_index_is_prompt_times_n_plus_choice(client: httpx.AsyncClient, byte_level: Tokenizer) -> None:
    prompts = ["Once upon a", "the lazy dog"]
    answer = await complete(client, prompt=prompts, n=2, max_tokens=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice, (prompt, start) in zip(answer["choices"], itertools.product(prompts, (0, 1)), strict=True):
        ids = await byte_level.encode(prompt)
        assert choice["text"] == byte_level.decode([ids[start], ids[start + 1]])


async def test_a_stream_carries_the_text_then_an_empty_chunk_with_the_reason(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, max_tokens=4)
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {(chunks[0]["id"], chunks[0]["created"])}
    assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == PROMPT
    assert (choices[-1]["text"], choices[-1]["finish_reason"]) == ("", "length")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])


async def test_include_usage_adds_null_to_each_chunk_and_one_chunk_with_usage(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, max_tokens=4, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4


async def test_streamed_choices_of_many_prompts_join_to_the_same_texts(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["Once upon a", "the lazy dog", "fox"], "n": 2, "max_tokens": 5}
    whole = await complete(client, **body)
    texts: dict[int, str] = dict.fromkeys(range(6), "")
    for chunk in await stream(client, **body):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole["choices"]]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_echo_repeats_the_prompt_in_every_choice(client: httpx.AsyncClient, is_streamed: bool) -> None:
    body = {"echo": True, "n": 2, "max_tokens": 2}
    if is_streamed:
        texts = ["", ""]
        for chunk in await stream(client, **body):
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    else:
        texts = [choice["text"] for choice in (await complete(client, **body))["choices"]]
    assert [text[: len(PROMPT)] for text in texts] == [PROMPT, PROMPT]
    assert all(len(text) > len(PROMPT) for text in texts)


async def test_echo_with_no_tokens_scores_the_prompt(client: httpx.AsyncClient, byte_level: Tokenizer) -> None:
    answer = await complete(client, echo=True, max_tokens=0, logprobs=1)
    choice = answer["choices"][0]
    ids = await byte_level.encode(PROMPT)
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [
        None,
        *(pytest.approx(fake_logprob(token_id, position)) for position, token_id in enumerate(ids[1:], 1)),
    ]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("is_echoed", [False, True])
async def test_text_offsets_point_at_the_tokens_from_the_prompt_s_start(
    client: httpx.AsyncClient, is_echoed: bool
) -> None:
    answer = await complete(client, prompt="naïve 😀 fox", max_tokens=9, logprobs=2, echo=is_echoed)
    choice = answer["choices"][0]
    full_text = choice["text"] if is_echoed else "naïve 😀 fox" + choice["text"]
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"][0] == (0 if is_echoed else len("naïve 😀 fox"))
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert full_text[offset : offset + len(token)] == token


@pytest.mark.parametrize("skips", [True, False])
async def test_text_offsets_count_special_tokens_that_the_prompt_spells(
    client: httpx.AsyncClient, skips: bool
) -> None:
    prompt = "the fox<|end|> again 😀<|end|><|user|>dog"
    answer = await complete(client, prompt=prompt, echo=True, max_tokens=2, logprobs=0, skip_special_tokens=skips)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"].count("<|end|>") == 2
    for token, offset in zip(logprobs["tokens"][:-2], logprobs["text_offset"], strict=False):
        assert token.startswith("bytes:") or prompt[offset : offset + len(token)] == token
    assert logprobs["text_offset"][-2] == len(prompt)


async def test_a_token_that_the_tokenizer_adds_takes_no_place_in_the_text(
    engine: FakeEngine, byte_fallback: Tokenizer
) -> None:
    app = create_app(engine, byte_fallback, FrontEndSettings(model_names=("tiny",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        answer = await complete(
            client, prompt="a fox</s>", echo=True, max_tokens=0, logprobs=0, skip_special_tokens=False
        )
    choice = answer["choices"][0]
    assert (choice["text"], choice["logprobs"]["tokens"][0]) == ("a fox</s>", "<s>")
    assert choice["logprobs"]["text_offset"][:2] == [0, 0]
    assert choice["logprobs"]["text_offset"][-1] == len("a fox")


async def test_half_a_character_is_named_by_its_bytes_at_the_character_s_offset(client: httpx.AsyncClient) -> None:
    logprobs = (await complete(client, prompt="😀", echo=True, max_tokens=0, logprobs=0))["choices"][0]["logprobs"]
    joined = b"".join(bytes.fromhex(token[6:].replace("\\x", "")) for token in logprobs["tokens"])
    assert joined.decode() == "😀"
    assert set(logprobs["text_offset"]) == {0}
    assert logprobs["top_logprobs"] is None


async def test_prompt_logprobs_have_vllm_s_form(client: httpx.AsyncClient, byte_level: Tokenizer) -> None:
    prompts = [PROMPT, "the lazy dog"]
    answer = await complete(client, prompt=prompts, n=2, prompt_logprobs=2, max_tokens=1)
    for choice, prompt in zip(answer["choices"], (p for p in prompts for _ in range(2)), strict=True):
        first, *rest = choice["prompt_logprobs"]
        ids = await byte_level.encode(prompt)
        assert first is None
        assert len(rest) == len(ids) - 1
        for position, (token_id, entry) in enumerate(zip(ids[1:], rest, strict=True), 1):
            assert len(entry) == 2
            own = entry[str(token_id)]
            assert own["logprob"] == pytest.approx(fake_logprob(token_id, position))
            assert (own["rank"], own["decoded_token"]) == (2, byte_level.decode([token_id]))
            assert sorted(rival["rank"] for rival in entry.values()) == [1, 2]


async def test_prompt_logprobs_of_zero_hold_the_prompt_s_own_tokens(
    client: httpx.AsyncClient, byte_level: Tokenizer
) -> None:
    answer = await complete(client, prompt_logprobs=0, echo=True, logprobs=3, max_tokens=1)
    ids = await byte_level.encode(PROMPT)
    entries = answer["choices"][0]["prompt_logprobs"][1:]
    assert [list(entry) for entry in entries] == [[str(token_id)] for token_id in ids[1:]]
    assert [entry[str(token_id)]["rank"] for entry, token_id in zip(entries, ids[1:], strict=True)] == [None] * 3


async def test_without_being_asked_for_there_are_no_prompt_logprobs(client: httpx.AsyncClient) -> None:
    assert "prompt_logprobs" not in (await complete(client, echo=True, logprobs=1))["choices"][0]


async def test_top_logprobs_hold_the_chosen_token_beside_the_likeliest(client: httpx.AsyncClient) -> None:
    logprobs = (await complete(client, max_tokens=3, logprobs=1))["choices"][0]["logprobs"]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert len(top) == 2
        assert top[token] == logprob
        assert max(top.values()) > logprob


async def test_streamed_logprobs_join_to_those_of_the_whole(client: httpx.AsyncClient) -> None:
    body = {"prompt": "naïve 😀 fox", "max_tokens": 9, "logprobs": 2, "echo": True, "n": 2}
    whole = await complete(client, **body)
    joined: list[dict[str, list[Any]]] = [
        {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in range(2)
    ]
    for chunk in await stream(client, **body):
        for choice in chunk["choices"]:
            for name, values in (choice["logprobs"] or {}).items():
                joined[choice["index"]][name] += values
    assert joined == [choice["logprobs"] for choice in whole["choices"]]


async def test_best_of_samples_all_and_returns_the_likeliest_a_token(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    answer = await complete(client, best_of=4, n=2, max_tokens=1)
    assert len(engine.requests[0].sequences) == 4
    ids = await byte_level.encode(PROMPT)
    ranked = sorted(ids, key=lambda token_id: fake_logprob(token_id, len(ids) + 1), reverse=True)
    assert [choice["text"] for choice in answer["choices"]] == [byte_level.decode([i]) for i in ranked[:2]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 4


async def test_a_stop_string_over_several_tokens_cuts_the_text_and_ends_the_sequence(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    engine.script = says("Once upon a time there was a little fox", byte_level)
    answer = await complete(client, stop=["me the", "never"], max_tokens=30, logprobs=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Once upon a ti", "stop")
    assert engine.aborted == [(engine.requests[0].request_id, [0])]
    assert "".join(choice["logprobs"]["tokens"]).startswith("Once upon a ti")
    assert " the" not in choice["logprobs"]["tokens"][-1]


async def test_a_stream_never_shows_any_part_of_a_stop_string(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    engine.script = says("a little fox, a little dog", byte_level)
    chunks = await stream(client, stop=["little dog"], max_tokens=30)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "a little fox, a "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_one_choice_that_stops_leaves_the_others_running(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    answer = await complete(client, n=2, stop=" time", max_tokens=4)
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop"]
    assert [choice["text"] for choice in answer["choices"]] == ["Once upon a", " upon a"]


async def test_stop_strings_do_not_count_within_min_tokens(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    engine.script = says("fox dog fox dog", byte_level)
    answer = await complete(client, stop="dog", min_tokens=4, max_tokens=20)
    assert answer["choices"][0]["text"].count("dog") == 1


async def test_the_stop_string_is_kept_on_request(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    engine.script = says("the quick brown", byte_level)
    answer = await complete(client, stop="quick", include_stop_str_in_output=True)
    assert answer["choices"][0]["text"] == "the quick"


async def test_the_end_token_is_no_text_but_has_its_logprob(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    ids = await byte_level.encode("the fox")
    engine.script = lambda request, index: [*ids, 0]
    choice = (await complete(client, logprobs=0))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("the fox", "stop")
    assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert choice["logprobs"]["text_offset"][-1] == len(PROMPT) + len("the fox")


async def test_a_text_token_given_as_stop_token_is_no_text_either(
    client: httpx.AsyncClient, engine: FakeEngine, byte_level: Tokenizer
) -> None:
    ids = await byte_level.encode("the fox again")
    engine.script = lambda request, index: ids
    choice = (await complete(client, stop_token_ids=[ids[-1]]))["choices"][0]
    assert choice["text"] == byte_level.decode(ids[:-1])


async def test_the_engine_gets_the_parameters_that_were_asked_for(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(
        client, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=0.1, frequency_penalty=0.2,
        repetition_penalty=1.1, logit_bias={"5": -3}, seed=42, min_tokens=1, max_tokens=2, stop_token_ids=[9],
        priority=-2,
    )  # fmt: skip
    (request,) = engine.requests
    assert (request.seed, request.priority) == (42, -2)
    assert request.params == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=0.1, frequency_penalty=0.2,
        repetition_penalty=1.1, logit_bias={5: -3.0}, seed=42, min_tokens=1, max_tokens=2, stop_token_ids=(9,),
        eos_token_ids=(0,),
    )  # fmt: skip


@pytest.mark.parametrize("off", [-1, 0, None])
async def test_top_k_is_off_as_in_vllm(client: httpx.AsyncClient, engine: FakeEngine, off: int | None) -> None:
    await complete(client, top_k=off)
    assert engine.requests[0].params.top_k is None


async def test_ignore_eos_leaves_the_engine_no_end_token(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, ignore_eos=True)
    assert engine.requests[0].params.eos_token_ids == ()


async def test_unseeded_requests_get_different_seeds(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, prompt=["a", "b"])
    assert len({request.seed for request in engine.requests}) == 2


@pytest.mark.parametrize("prompt", ["", None])
async def test_an_empty_prompt_begins_a_document(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: str | None
) -> None:
    await complete(client, prompt=prompt)
    assert engine.requests[0].prompt_ids == [0]


async def test_a_failure_before_the_answer_is_a_500_in_the_error_shape(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = 2
    response = await client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT})
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "the fake engine failed",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_the_end_of_the_server_cuts_off_is_to_be_tried_elsewhere(
    client: httpx.AsyncClient, engine: FakeEngine, is_streamed: bool
) -> None:
    def ends(request: Any, index: int) -> list[int]:
        engine.state = "draining"
        return [5]

    engine.fail_after, engine.script = 2, ends
    if is_streamed:
        error = (await stream(client))[-1]["error"]
    else:
        response = await client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT})
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        error = response.json()["error"]
    assert (error["code"], error["message"]) == ("draining", "the fake engine failed")


async def test_a_failure_in_the_middle_of_a_stream_is_one_error_frame(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = 2
    *chunks, error = await stream(client, n=2)
    assert len(chunks) == 4
    assert error["error"]["message"] == "the fake engine failed"
    assert engine.num_live == 0
