"""Whatever a client sends, it gets an answer or its own error: never a 5xx, always the one shape."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distllm.server.protocol.chat import ChatCompletionRequest
from distllm.server.protocol.completions import CompletionRequest
from tests.server.fake_engine import FakeEngine

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 40),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["", "fox", "tiny", "\ud800", "é", "<|end|>", "user", "text"]),
    st.sampled_from([10**400, -(2**63) - 1, 1e308, 5e-324, -0.0]),
)
KEYS = st.sampled_from(["role", "content", "type", "text", "name", "include_usage", "1", "599", "x"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": VALUES}),
    max_size=3,
)
FIELDS = {
    "/v1/completions": sorted({*CompletionRequest.model_fields, *CompletionRequest.unsupported, "extra"}),
    "/v1/chat/completions": sorted(
        {*ChatCompletionRequest.model_fields, *ChatCompletionRequest.unsupported, "extra"}
    ),
    "/tokenize": ["prompt", "messages", "model", "add_special_tokens", "chat_template_kwargs"],
    "/detokenize": ["tokens", "model"],
}
BASES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "the fox", "max_tokens": 4},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
    "/tokenize": {},
    "/detokenize": {"tokens": [5]},
}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404, 413), response.text
    if response.status_code != 200:
        assert set(response.json()) == {"error"}
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert isinstance(response.json()["error"]["message"], str)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error":' not in response.text


@pytest.mark.parametrize("path", sorted(FIELDS))
@given(data=st.data())
@FUZZ
async def test_any_values_of_known_fields_are_answered(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, data: st.DataObject
) -> None:
    fields = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, max_size=3))
    if "messages" in FIELDS[path] and data.draw(st.booleans()):
        fields["messages"] = data.draw(MESSAGES)
    body = json.dumps(BASES[path] | fields).encode()
    check(await client.post(path, content=body, headers={"content-type": "application/json"}))
    assert engine.num_live == 0


@given(
    body=st.one_of(
        st.binary(max_size=200), st.text(alphabet='{}[]":,\\u0d8ftruenl15-+.eE ', max_size=80).map(str.encode)
    )
)
@FUZZ
async def test_any_bytes_are_answered(client: httpx.AsyncClient, body: bytes) -> None:
    check(await client.post("/v1/completions", content=body, headers={"content-type": "application/json"}))


@given(cut=st.integers(0, 200), flip=st.integers(0, 255))
@FUZZ
async def test_damaged_bodies_are_answered(client: httpx.AsyncClient, cut: int, flip: int) -> None:
    good = json.dumps(BASES["/v1/completions"] | {"stop": ["é😀"], "logit_bias": {"5": 1.5}}).encode()
    place = cut % len(good)
    damaged = good[:place] + bytes((flip,)) + good[place + 1 :]
    for body in (good[:place], damaged):
        check(await client.post("/v1/completions", content=body, headers={"content-type": "application/json"}))
