"""The app over a fake engine, spoken to in process."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from distllm.server.app import create_app
from distllm.server.settings import FrontEndSettings, SamplingDefaults
from distllm.server.tokenizer import Tokenizer
from tests.server.checkpoints import (
    CHAT_TEMPLATE,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    write_checkpoint,
)
from tests.server.fake_engine import FakeEngine

EOS_ID = 0


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("byte_level")
    write_checkpoint(directory, byte_level_tokenizer(), CHAT_TEMPLATE, eos_token="<|endoftext|>")
    return Tokenizer.load(directory)


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("byte_fallback")
    write_checkpoint(directory, byte_fallback_tokenizer(), bos_token="<s>", eos_token="</s>")
    return Tokenizer.load(directory)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(vocab_size=600)


@pytest.fixture
def settings() -> FrontEndSettings:
    return FrontEndSettings(model_names=("tiny", "tiny-alias"), max_body_bytes=200_000)


@pytest.fixture
def app(engine: FakeEngine, byte_level: Tokenizer, settings: FrontEndSettings) -> FastAPI:
    return create_app(engine, byte_level, settings, SamplingDefaults(eos_token_ids=(EOS_ID,)))


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=10) as client:
        yield client
