"""LLM, end to end: the embedded model in an engine process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

import distllm
from distllm import LLM, SamplingParams
from distllm.scheduler.refusals import EngineUnavailable
from distllm.server.config import InvalidSettings
from distllm.server.errors import InvalidRequest
from distllm.server.slow_tokenizer import TokenizerError
from tests.forked import forked

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=4, max_waiting=4, num_threads=1, kv_cache_memory=0.05) as llm:
        yield llm


def test_texts_ids_and_single_prompts_all_give_one_result_each(llm: LLM) -> None:
    together = llm.generate(["Once upon a time", "The fox"], GREEDY, use_tqdm=False)
    ids = [result.prompt_token_ids for result in together]
    assert [result.text for result in llm.generate(ids, GREEDY, use_tqdm=False)] == [
        result.text for result in together
    ]
    for result in together:
        assert result.prompt is not None
        (alone,) = llm.generate(result.prompt, GREEDY, use_tqdm=False)
        assert alone.completions[0].token_ids == result.completions[0].token_ids
    (by_ids,) = llm.generate(ids[0], GREEDY, use_tqdm=False)
    assert by_ids.text == together[0].text
    assert by_ids.num_cached_tokens <= len(ids[0])


def test_many_more_prompts_than_the_engine_takes_at_once_all_end(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, temperature=1.0, ignore_eos=True)
    results = llm.generate(["Once upon a time"] * 40, params, n=2, use_tqdm=False)
    assert len(results) == 40
    assert all(len(completion.token_ids) == 3 for result in results for completion in result.completions)


def test_a_seed_gives_the_same_answers_again_in_another_batch(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, top_p=0.95, seed=17)
    (alone,) = llm.generate("Once upon a time", params, n=2, use_tqdm=False)
    crowd = llm.generate(["The fox", "Once upon a time", "A boy"], params, n=2, use_tqdm=False)
    assert [c.token_ids for c in crowd[1].completions] == [c.token_ids for c in alone.completions]
    assert alone.completions[0].token_ids != alone.completions[1].token_ids


def test_a_forked_child_is_refused_at_once_and_does_the_engine_no_harm(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", GREEDY)
    pieces = [next(stream)]

    def use() -> str:
        said = []
        for work in (lambda: llm.generate("The fox", GREEDY, use_tqdm=False), lambda: next(stream)):
            with pytest.raises(EngineUnavailable) as caught:
                work()
            said.append(str(caught.value))
        llm.close()
        assert len(set(said)) == 1
        return said[0]

    owner = f"process {os.getpid()}, which started it"
    assert forked(use) == f"this engine belongs to {owner}, not to a fork of it: start another here"
    pieces += stream
    (whole,) = llm.generate("Once upon a time", GREEDY, use_tqdm=False)
    assert "".join(pieces) == whole.text


def test_chat_answers_one_conversation_or_several(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "What is 2 plus 3?"}]
    (one,) = llm.chat(conversation, GREEDY, use_tqdm=False)
    assert one.completions[0].finish_reason == "stop"
    several = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert [result.text for result in several] == [one.text, one.text]


def test_a_stream_brings_the_text_of_generate_and_ends_the_request_when_it_is_left(llm: LLM) -> None:
    pieces = list(llm.stream("Once upon a time", GREEDY))
    assert len(pieces) > 1
    assert "".join(pieces) == llm.generate("Once upon a time", GREEDY, use_tqdm=False)[0].text
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=1000, ignore_eos=True))
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm._engine.num_live == 0


def test_a_stream_takes_one_prompt(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="stream takes one prompt; start one stream for each"):
        llm.stream(["A", "B"])  # type: ignore[list-item]


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([]) == []
    assert llm.chat([]) == []


def test_a_wrong_prompt_is_refused_and_the_engine_goes_on(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"prompts\[1\] holds token id"):
        llm.generate([[1], [10**6]], GREEDY)
    with pytest.raises(InvalidRequest, match="stop holds 5 strings"):
        llm.generate("A", GREEDY, stop=list("abcde"))
    assert llm.generate("The fox", GREEDY, use_tqdm=False)[0].text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda llm: llm.generate(None), "prompts must be a text, texts, token ids or lists of token ids"),
        (lambda llm: llm.generate("A", {"max_tokens": 3}), "sampling_params must be a SamplingParams, or a list"),
        (lambda llm: llm.generate("A", ["x"]), "sampling_params must be a SamplingParams, or a list"),
        (lambda llm: llm.generate("A", n="x"), "n must be a whole number of at least 1, not 'x'"),
        (lambda llm: llm.generate("A", stop=5), "stop must be a string or a list of strings"),
        (lambda llm: llm.chat(None), "messages must be a list of messages, or a list of conversations"),
        (lambda llm: llm.chat([{"role": "pet", "content": "A"}]), r"messages\[0\]\W+role"),
        (lambda llm: llm.chat([[{"role": "user", "content": "A"}], []]), r"conversations\[1\]: messages must hold"),
    ],
)
def test_a_call_with_the_wrong_kinds_of_values_is_refused_in_one_line(
    llm: LLM, call: Callable[[LLM], object], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{words}") as caught:
        call(llm)
    assert "\n" not in str(caught.value)


def test_the_bar_shows_prompts_and_tokens_a_second(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["The fox"] * 3, GREEDY)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "tokens/s" in shown


def test_defaults_are_what_the_checkpoint_recommends(llm: LLM) -> None:
    assert llm.info.vocab_size > 0
    assert isinstance(llm.default_params, SamplingParams)


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidSettings, match=r"no option 'tensor_parallel'; it has .*max_num_seqs"):
        LLM(tensor_parallel=2)


@pytest.mark.parametrize("field", ["seed", "max_tokens", "top_k", "logprobs"])
def test_a_parameter_of_the_wrong_type_is_refused_and_the_next_call_works(llm: LLM, field: str) -> None:
    params = SamplingParams(**{field: 2.5})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=f"sampling_params: {field}: Expected `int"):
        llm.generate("Once upon", params, use_tqdm=False)
    assert llm.generate("Once upon", GREEDY, use_tqdm=False)[0].text


def test_a_chat_template_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"the chat template /no/such\.jinja cannot be read"):
        LLM(chat_template="/no/such.jinja")


def test_a_model_that_cannot_be_loaded_leaves_no_process_behind() -> None:
    with pytest.raises(EngineUnavailable):
        LLM(kv_cache_memory=1e-9)
    assert engines_of(os.getpid()) <= 1  # the fixture's own


def test_closing_twice_is_harmless_and_ends_the_engine() -> None:
    llm = LLM(max_num_seqs=1, num_threads=1, kv_cache_memory=0.01)
    num_before = engines_of(os.getpid())
    llm.close()
    llm.close()
    with pytest.raises(EngineUnavailable, match="this LLM has been closed"):
        llm.generate("A")
    assert engines_of(os.getpid()) == num_before - 1


def engines_of(pid: int) -> int:
    return sum("distllm.scheduler.process" in child.cmdline() for child in psutil.Process(pid).children())


def test_importing_the_package_loads_neither_torch_nor_the_server() -> None:
    script = "import sys, distllm.deepspeed; print(sorted({'torch', 'fastapi', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        distllm.__getattr__("Nothing")
