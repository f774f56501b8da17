"""CoordinatorClient alone and beside the engine of HybridInference, against the real server and one of others."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer

from distllm import CoordinatorClient, HybridInference, InvalidOption, OutOfMemory
from distllm.clients import NO_RETRIES
from distllm.deepspeed import hybrid_inference
from distllm.engine.embedded import checkpoint_path
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.errors import GenerationFailed, InvalidRequest

if TYPE_CHECKING:
    from tests.conftest import RunningServer

PROMPT = "Once upon a time"
FAST_TEXT = "".join(chr(ord("a") + number % 26) for number in range(256))
"""Of one token a letter, all at once."""
NOWHERE = "http://127.0.0.1:9"


@contextmanager
def plain_server(*texts: str, status: int = 200, is_cut: bool = False) -> Iterator[str]:
    """Of OpenAI's API and nothing more: answers `texts`, streamed one a chunk, or refuses with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(json.dumps({"data": [{"id": "m"}]}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.path.endswith("/v1/completions"):
                self.reply('{"detail": "Not Found"}', 404)
            elif status != 200:
                self.reply(json.dumps({"error": {"message": "no", "param": "max_tokens"}}), status)
            elif asked.get("stream"):
                chunks = [{"id": "c", "choices": [{"text": text, "finish_reason": None}]} for text in texts]
                ends = [] if is_cut else ["[DONE]"]
                self.reply("".join(f"data: {line}\n\n" for line in [*map(json.dumps, chunks), *ends]))
            else:
                choices = [{"text": "".join(texts), "index": number} for number, _ in enumerate(asked["prompt"])]
                usage = {"prompt_tokens": 1, "completion_tokens": len(texts)}
                self.reply(json.dumps({"id": "c", "choices": choices, "usage": usage}))

        def reply(self, text: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTLLM_KV_CACHE_MEMORY", "0.05")


@pytest.fixture
def coordinator(embedded_server: "RunningServer") -> Iterator[CoordinatorClient]:
    with CoordinatorClient(embedded_server.url) as client:
        yield client


@pytest.fixture(scope="module")
def engine_options() -> dict[str, Any]:
    return {"model_id": checkpoint_path(), "use_deepspeed": False}


def test_it_generates_as_an_engine_here_does(coordinator: CoordinatorClient) -> None:
    text = coordinator.generate(PROMPT, max_new_tokens=8)
    assert text
    assert coordinator.generate([PROMPT, PROMPT], max_new_tokens=8) == [text, text]
    assert "".join(coordinator.stream(PROMPT, max_new_tokens=8)) == text
    assert coordinator.generate(PROMPT, max_new_tokens=8, return_full_text=True) == PROMPT + text
    assert coordinator.generate([], max_new_tokens=8) == []
    stop = text.split()[1]
    assert coordinator.generate(PROMPT, max_new_tokens=8, stop=stop) == text[: text.index(stop)]
    drawn = coordinator.generate(PROMPT, max_new_tokens=8, temperature=1.0, seed=3)
    assert drawn == coordinator.generate(PROMPT, max_new_tokens=8, temperature=1.0, seed=3)


def test_it_tells_what_the_server_predicts(coordinator: CoordinatorClient) -> None:
    explanation = coordinator.explain(PROMPT, max_new_tokens=8)
    assert explanation is not None
    assert (explanation.route, explanation.max_tokens) == ("local", 8)
    prospect = coordinator.prospect([PROMPT], {"max_new_tokens": 8})
    state = prospect.state
    assert prospect.prompt_tokens == explanation.prompt_tokens > 0
    assert explanation.chosen is not None
    assert (state.route, state.unavailable, state.num_machines) == ("pipeline", None, 1)
    assert 0 < state.tpot_s < 1


def test_errors_are_those_of_an_engine_here(
    coordinator: CoordinatorClient, embedded_server: "RunningServer"
) -> None:
    with pytest.raises(InvalidRequest, match="lower max_new_tokens") as caught:
        coordinator.generate(PROMPT, max_new_tokens=100_000)
    assert caught.value.param == "max_new_tokens"
    with pytest.raises(InvalidOption, match="max_tokens is no option of generate"):
        coordinator.generate(PROMPT, max_tokens=3)  # type: ignore[call-overload]
    with pytest.raises(InvalidOption, match="url cannot be used: 'nowhere' is not a server's address"):
        CoordinatorClient("nowhere")
    with pytest.raises(InvalidOption, match="api_key cannot be used"):
        CoordinatorClient(embedded_server.url, "kéy")


def test_a_model_that_the_server_lacks_is_refused(embedded_server: "RunningServer") -> None:
    refused = pytest.raises(InvalidOption, match=r"model is refused by the server: .*'other' does not exist")
    with CoordinatorClient(embedded_server.url, model="other") as client, refused:
        client.generate(PROMPT)


def test_a_server_that_is_not_there_is_no_engine() -> None:
    with CoordinatorClient(NOWHERE) as client, pytest.raises(EngineUnavailable, match="no server answers at"):
        client.generate(PROMPT)


def test_a_server_of_others_is_judged_by_what_it_has_taken() -> None:
    with plain_server("a", "b", "c") as url, CoordinatorClient(url) as client:
        assert client.explain(PROMPT) is None
        assert client.prospect([PROMPT], {}).state.tpot_s == 0.05
        assert client.generate(PROMPT) == "abc"
        assert client.prospect([PROMPT], {}).state.tpot_s < 0.05
        assert list(client.stream(PROMPT)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("status", "expected"), [(400, InvalidRequest), (401, InvalidOption), (500, GenerationFailed)]
)
def test_refusals_of_a_server_have_our_names(status: int, expected: type[Exception]) -> None:
    with plain_server(status=status) as url, CoordinatorClient(url) as client:
        for call in (lambda: client.generate(PROMPT), lambda: list(client.stream(PROMPT))):
            with pytest.raises(expected):
                call()


def test_a_stream_that_breaks_off_is_a_failure_and_not_a_short_answer() -> None:
    with plain_server("a", is_cut=True) as url, CoordinatorClient(url) as client:
        pieces = client.stream(PROMPT)
        assert next(pieces) == "a"
        with pytest.raises(GenerationFailed, match="ended in the middle"):
            list(pieces)


def test_a_call_runs_here_while_that_meets_the_target(engine_options: dict[str, Any]) -> None:
    with (
        plain_server(FAST_TEXT) as url,
        CoordinatorClient(url) as client,
        HybridInference(coordinator_client=client, **engine_options) as hybrid,
    ):
        text = hybrid.generate(PROMPT, max_new_tokens=8)
        assert text != FAST_TEXT
        assert "".join(hybrid.stream(PROMPT, max_new_tokens=8)) == text
        assert hybrid.decision is not None
        assert (hybrid.decision.route, hybrid.decision.why) == ("local", "cheapest")
        words = "word " * 200
        reason = hybrid.explain([words, words], max_new_tokens=8).reason
        num_tokens = 2 * len(Tokenizer.from_file(f"{checkpoint_path()}/tokenizer.json").encode(words).ids)
        assert reason.endswith(f"The prompt has {num_tokens} tokens, as the tokenizer here counts.")


def test_a_call_runs_there_where_nothing_meets_the_target_and_that_is_faster(
    engine_options: dict[str, Any],
) -> None:
    with (
        plain_server(*FAST_TEXT) as url,
        CoordinatorClient(url) as client,
        HybridInference(coordinator_client=client, target_tpot_s=1e-9, **engine_options) as hybrid,
    ):
        assert client.generate(PROMPT) == FAST_TEXT, "which is measured"
        assert hybrid.explain([PROMPT], max_new_tokens=8).route == "pipeline"
        assert hybrid.generate(PROMPT, max_new_tokens=8) == FAST_TEXT
        assert "".join(hybrid.stream(PROMPT, max_new_tokens=8)) == FAST_TEXT
        assert hybrid.decision is not None
        assert "is the fastest" in hybrid.decision.reason


def test_a_call_that_the_server_does_not_take_runs_here(
    engine_options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        plain_server(status=503) as url,
        CoordinatorClient(url, retries=NO_RETRIES) as client,
        HybridInference(coordinator_client=client, target_tpot_s=1e-9, **engine_options) as hybrid,
    ):
        for _ in range(9):
            client.latency.note_whole(1e-6, 1)
        assert hybrid.explain(PROMPT).route == "pipeline"
        assert hybrid.generate(PROMPT, max_new_tokens=8)
        assert list(hybrid.stream(PROMPT, max_new_tokens=8))
        assert "the call runs here: no" in caplog.text


def test_a_server_that_is_away_is_left_out(engine_options: dict[str, Any]) -> None:
    with (
        CoordinatorClient(NOWHERE) as client,
        HybridInference(coordinator_client=client, **engine_options) as hybrid,
    ):
        assert hybrid.generate(PROMPT, max_new_tokens=8)
        assert hybrid.decision is not None
        assert "no server answers" in hybrid.decision.unavailable["pipeline"]


def test_a_model_that_does_not_fit_here_runs_there(
    engine_options: dict[str, Any], coordinator: CoordinatorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OutOfMemory("8.00 GiB of weights do not fit")

    monkeypatch.setattr(hybrid_inference, "InferenceEngine", refuse)
    with HybridInference(coordinator_client=coordinator, **engine_options) as hybrid:
        assert hybrid.generate(PROMPT, max_new_tokens=4)
        assert hybrid.decision is not None
        assert hybrid.decision.unavailable == {"local": "8.00 GiB of weights do not fit"}
        num_tokens = coordinator.prospect([PROMPT], {}).prompt_tokens
        assert f"The prompt has {num_tokens} tokens, as the server counts." in hybrid.decision.reason
    with (
        plain_server("a") as url,
        CoordinatorClient(url) as client,
        HybridInference(coordinator_client=client, **engine_options) as hybrid,
    ):
        assert hybrid.explain("x" * 40).reason.endswith("The prompt has 10 tokens, if one is four characters.")
    with pytest.raises(OutOfMemory):
        HybridInference(**engine_options)
