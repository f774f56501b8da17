"""A server that starts from a converted checkpoint: the text of one that slices while it loads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from distllm.engine.conversion.convert import convert_checkpoint_to_deepspeed
from distllm.engine.embedded import checkpoint_path
from tests.conftest import RunningServer, StartServer, running_server

PROMPTS = ("Once upon a time", "The fox and the bird", "Mia had a red ball.")


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint_to_deepspeed(checkpoint_path(), tmp_path_factory.mktemp("converted") / "two", 2)


@pytest.fixture(scope="module")
def converted(descriptor: Path) -> Iterator[RunningServer]:
    with running_server([str(descriptor.parent), "--served-model-name", "m"], {}) as server:
        yield server


def texts(server: RunningServer) -> list[str]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        return [
            client.completions.create(model="m", prompt=prompt, max_tokens=60, temperature=temperature, seed=1)
            .choices[0]
            .text
            for prompt in PROMPTS
            for temperature in (0, 1)
        ]


def test_a_directory_is_served_by_as_many_ranks_as_it_was_converted_for(
    converted: RunningServer, start_server: StartServer
) -> None:
    sliced = start_server("--tensor-parallel-size", "2", "--served-model-name", "m")
    found = texts(converted)
    assert found == texts(sliced)
    assert all(found)


def test_the_descriptor_itself_is_served(
    descriptor: Path, converted: RunningServer, start_server: StartServer
) -> None:
    server = start_server(descriptor, "--tensor-parallel-size", "2", "--served-model-name", "m")
    assert texts(server) == texts(converted)


def test_another_number_of_ranks_is_refused_in_one_line(descriptor: Path, start_server: StartServer) -> None:
    words = "converted for tensor_parallel_size 2, not 3: give --tensor-parallel-size 2, or convert it again"
    with pytest.raises(AssertionError, match=words):
        start_server(descriptor.parent, "--tensor-parallel-size", "3")
