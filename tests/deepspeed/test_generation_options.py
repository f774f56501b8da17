"""Every wrong option of generate is refused under the name that the caller gave."""

from typing import Any

import pytest

from distllm.deepspeed.generation_options import sampling_params, stop_strings
from distllm.deepspeed.refusal import InvalidOption
from distllm.engine.sampling_params import SamplingParams

RECOMMENDED = SamplingParams(max_tokens=None, temperature=0.7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": "5"}, "max_new_tokens must be a whole number, not '5'"),
        ({"max_new_tokens": 5.0}, r"max_new_tokens must be a whole number, not 5\.0"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, not True"),
        ({"max_new_tokens": 10**30}, "max_new_tokens must be of at most 64 bits"),
        (
            {"min_new_tokens": 30, "max_new_tokens": 10},
            "min_new_tokens must not exceed max_new_tokens, which is 10",
        ),
        ({"top_k": 1.5}, r"top_k must be a whole number, not 1\.5"),
        ({"top_k": -1}, "top_k must be at least 1, or None to keep every token"),
        ({"seed": "a"}, "seed must be a whole number, not 'a'"),
        ({"seed": 2**70, "do_sample": True}, "seed must be of at most 64 bits"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": True}, "temperature must be a number, not True"),
        ({"do_sample": "yes"}, "do_sample must be True or False, not 'yes'"),
        ({"return_full_text": 1}, "return_full_text must be True or False, not 1"),
        ({"max_tokens": 5}, "max_tokens is no option of generate; did you mean max_new_tokens or min_new_tokens?"),
        ({"num_beams": None}, "num_beams is no option of generate"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=f"^{words}") as caught:
        sampling_params(options, RECOMMENDED)
    assert str(caught.value).startswith(caught.value.option)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": 5}, "stop must be a text or a list of texts, not 5"),
        ({"stop": [1]}, r"stop must be a text or a list of texts, not \[1\]"),
        ({"stop_strings": {"a"}}, "stop_strings must be a text or a list of texts, not {'a'}"),
        ({"stop": [""]}, "stop must not hold an empty text"),
        (
            {"stop": list("abc"), "stop_strings": ("d", "e")},
            "stop holds 5 texts, stop_strings included; at most 4 go",
        ),
    ],
)
def test_stop_strings_that_are_none_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=f"^{words}"):
        stop_strings(options)


def test_stop_strings_of_both_names_count() -> None:
    assert stop_strings({"stop": "a", "stop_strings": ("b", "c")}) == ("a", "b", "c")
    assert stop_strings({"stop": None, "stop_strings": ""}) == ()
