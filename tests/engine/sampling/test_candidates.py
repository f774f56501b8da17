"""Candidates: which rows are chosen from them, and that these get the tokens of whole rows, bit for bit."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling import sampler
from distllm.engine.sampling.candidates import MAX_CANDIDATES, candidates_in, merge_candidates, num_candidates
from distllm.engine.sampling.needed_logits import NeededLogits
from distllm.engine.sampling.sampler import SampledToken, Sampler
from distllm.engine.sampling_params import SamplingParams

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]
NEGATIVE_NAN = torch.tensor(-0x400000, dtype=torch.int32).view(torch.float32)  # what x86 makes of 0 * inf


def spec_of(index: int = 0, **params: object) -> SampleSpec:
    return SampleSpec(SamplingParams(**params), seed=7, index=index)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (spec_of(temperature=0.0), 1),
        (spec_of(temperature=0.0, top_k=40, top_p=0.5, min_p=0.1), 1),
        (spec_of(top_k=40), 40),
        (spec_of(top_k=40, top_p=0.5, min_p=0.1, temperature=0.3), 40),
        (spec_of(top_k=MAX_CANDIDATES), MAX_CANDIDATES),
        (spec_of(top_k=MAX_CANDIDATES + 1), None),
        (spec_of(), None),
        (spec_of(top_p=0.5), None),
        (spec_of(min_p=0.5), None),
        (spec_of(temperature=0.0, logprobs=0), None),
        (spec_of(temperature=0.0, logit_bias={3: 1.0}), None),
        (spec_of(temperature=0.0, repetition_penalty=1.1), None),
        (spec_of(top_k=4, presence_penalty=0.1), None),
        (spec_of(top_k=4, frequency_penalty=0.1), None),
        (spec_of(top_k=4, min_tokens=3, index=2), None),
        (spec_of(top_k=4, min_tokens=3, index=3), 4),
        (spec_of(temperature=0.0, prompt_logprobs=3), 1),
    ],
    ids=str,
)
def test_a_row_is_read_whole_unless_its_best_tokens_decide(spec: SampleSpec, expected: int | None) -> None:
    assert num_candidates(spec) == expected


specs = st.builds(
    SampleSpec,
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.0, 1e-6, 0.7, 2.0]),
        top_k=st.none() | st.integers(1, 9) | st.integers(10, 300),
        top_p=st.just(1.0) | st.floats(0.01, 1.0),
        min_p=st.just(0.0) | st.sampled_from([0.01, 0.3, 0.99]),
        logit_bias=st.sampled_from([{}, {}, {1: 3.0}]),
    ),
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 5),
)
harms = st.sampled_from(["none", "none", "none", "lone", "-inf", "inf", "nan", "-nan", "all -inf", "all nan"])


def make_row(vocab_size: int, seed: int, harm: str) -> Tensor:
    """Logits, mostly with many ties; what is no number stands anywhere."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(vocab_size, generator=generator) * 3.0
    if seed % 3:
        row = (row * 2).round() / 2
    if seed % 5 == 0:
        row = row.sign() * 0.0  # zeros of both signs
    place = seed % vocab_size
    match harm:
        case "lone":
            row = torch.full_like(row, -torch.inf)
            row[place] = -3.0
        case "-inf":
            row[place::2] = -torch.inf
        case "inf":
            row[place] = torch.inf
        case "nan":
            row[place] = torch.nan
        case "-nan":
            row[place] = NEGATIVE_NAN
        case "all -inf":
            row.fill_(-torch.inf)
        case "all nan":
            row.fill_(NEGATIVE_NAN)
    return row


def in_parts(logits: Tensor, row_specs: Sequence[SampleSpec], sizes: Sequence[int]) -> list[SampledToken]:
    """Tokens of all rows as ranks find them that hold `sizes` tokens of the vocabulary each."""
    counts = [num_candidates(spec) for spec in row_specs]
    whole = [row for row, count in enumerate(counts) if count is None]
    listed = [row for row, count in enumerate(counts) if count is not None]
    listed_counts = torch.tensor([count for count in counts if count is not None], dtype=torch.int64)
    parts = [
        NeededLogits.of(part, listed_counts) for part in torch.split(logits[whole + listed], list(sizes), dim=-1)
    ]
    needed = NeededLogits.merge(parts, listed_counts)
    tokens = Sampler().sample(needed.whole, [row_specs[row] for row in whole])
    if needed.best is not None:
        tokens += Sampler().sample_candidates(needed.best, [row_specs[row] for row in listed])
    by_row = dict(zip(whole + listed, tokens, strict=True))
    return [by_row[row] for row in range(len(logits))]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12) | st.integers(13, 300), min_size=1, max_size=3),
    rows=st.lists(st.tuples(specs, st.integers(0, 10_000), harms), min_size=1, max_size=6),
)
def test_parts_of_a_vocabulary_give_the_tokens_of_whole_rows(
    device: str, sizes: list[int], rows: list[tuple[SampleSpec, int, str]]
) -> None:
    logits = torch.stack([make_row(sum(sizes), seed, harm) for _, seed, harm in rows]).to(device)
    row_specs = [spec for spec, _, _ in rows]
    expected = Sampler().sample(logits.clone(), row_specs)
    assert in_parts(logits, row_specs, sizes) == expected
    for (_, seed, harm), token in zip(rows, expected, strict=True):
        if harm in ("inf", "nan", "-nan", "all -inf", "all nan"):
            assert token.token_id is None, (seed, harm)


@pytest.mark.parametrize("vocab_size", [5, 40, 4099])
def test_merged_candidates_equal_a_stable_sort_of_the_whole(vocab_size: int) -> None:
    logits = torch.stack([make_row(vocab_size, seed, "none") for seed in range(12)])
    counts = torch.tensor([random.Random(row).randint(1, 60) for row in range(12)])
    parts = torch.split(logits, [2, vocab_size // 3, vocab_size - 2 - vocab_size // 3], dim=-1)
    found = [
        candidates_in(part, counts).shifted(first, logits.device)
        for part, first in zip(parts, (0, 2, 2 + vocab_size // 3), strict=True)
    ]
    best = merge_candidates(found, counts)
    for row, count in enumerate(counts.tolist()):
        values = logits[row].tolist()
        ranked = sorted(range(vocab_size), key=lambda token_id: (-values[token_id], token_id))[:count]
        assert best.ids[row, :count].tolist()[: len(ranked)] == ranked
        assert set(best.values[row, len(ranked) :].tolist()) <= {-math.inf}


@pytest.mark.parametrize("device", DEVICES)
def test_the_very_last_bit_of_a_random_number_chooses_alike(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the numbers where a row's token changes, any other sum of its probabilities would show."""
    sizes = [*range(2, 26), 100, 256]
    num_rows = len(sizes)
    logits = (torch.randn(num_rows, 700, generator=torch.Generator().manual_seed(1)) * 2.0).to(device)
    row_specs = [SampleSpec(SamplingParams(top_k=size, top_p=0.99), row, 0) for row, size in enumerate(sizes)]
    randoms: dict[int, float] = {}
    monkeypatch.setattr(
        sampler, "_uniforms", lambda specs, device: torch.tensor([randoms[spec.seed] for spec in specs]).to(device)
    )

    def tokens_at(numbers: Tensor) -> list[int | None]:
        randoms.update(enumerate(numbers.tolist()))
        return [token.token_id for token in Sampler().sample(logits.clone(), row_specs)]

    below, above = _edges(tokens_at, num_rows)
    for numbers in (below, above):
        expected = tokens_at(numbers)
        assert [token.token_id for token in in_parts(logits, row_specs, [300, 1, 399])] == expected
        for row in range(num_rows):
            (alone,) = in_parts(logits[row : row + 1], row_specs[row : row + 1], [340, 360])
            assert alone.token_id == expected[row]
    assert tokens_at(below) != tokens_at(above)


def _edges(tokens_at: Callable[[Tensor], list[int | None]], num_rows: int) -> tuple[Tensor, Tensor]:
    """For each row two neighbouring numbers: the last that gives the token of 0, and the next."""
    below, above = torch.zeros(num_rows, dtype=torch.float64), torch.ones(num_rows, dtype=torch.float64)
    first = tokens_at(below)
    for _ in range(54):
        middle = (below + above) / 2
        is_first = torch.tensor([token == old for token, old in zip(tokens_at(middle), first, strict=True)])
        below, above = torch.where(is_first, middle, below), torch.where(is_first, above, middle)
    return below, above
