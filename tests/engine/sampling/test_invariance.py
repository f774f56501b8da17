"""A row's bits depend on the row alone: not on its neighbours, their number and order, or the threads."""

import random
from collections.abc import Iterator

import pytest
import torch

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling.sampler import SampledToken, Sampler
from distllm.engine.sampling_params import SamplingParams

KINDS = [
    SamplingParams(temperature=0.0, logprobs=3),
    SamplingParams(temperature=0.7, logprobs=0),
    SamplingParams(temperature=1.5),
    SamplingParams(temperature=1.0, top_k=40, logprobs=20),
    SamplingParams(temperature=1.0, top_k=1100),
    SamplingParams(temperature=0.8, top_p=0.9, logprobs=1),
    SamplingParams(temperature=2.0, top_p=0.999),
    SamplingParams(temperature=1.2, min_p=0.02, top_p=0.95),
    SamplingParams(temperature=1.0, min_p=1e-6),
    SamplingParams(temperature=1.0, top_k=300, repetition_penalty=1.2, frequency_penalty=0.5, logprobs=2),
    SamplingParams(temperature=0.9, logit_bias={1: 5.0, 30: -100.0}, min_tokens=9, eos_token_ids=(2,)),
]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]


@pytest.fixture
def _restored_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def batch_of(vocab_size: int) -> tuple[torch.Tensor, list[SampleSpec]]:
    generator = torch.Generator().manual_seed(vocab_size)
    rows = torch.randn(2 * len(KINDS), vocab_size, generator=generator) * 3.0
    rows[len(KINDS) :] = rows[len(KINDS) :].bfloat16().float()
    specs = [
        SampleSpec(params, seed=row, index=row % 5, history=[5, 6, 5, 7], num_prompt_tokens=2)
        for row, params in enumerate(KINDS * 2)
    ]
    return rows, specs


@pytest.mark.usefixtures("_restored_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [33, 1000, 4099, 50257])
def test_every_row_gives_the_same_bits_in_any_batch(vocab_size: int, device: str) -> None:
    logits, specs = batch_of(vocab_size)
    logits = logits.to(device)
    torch.set_num_threads(1)
    alone = [sample_rows(Sampler(), logits, specs, [row])[0] for row in range(len(specs))]
    assert all(token.error is None for token in alone)
    order, sampler = random.Random(vocab_size), Sampler()
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for num_rows in (len(specs), len(specs), 17, 5, 2):
            rows = order.sample(range(len(specs)), num_rows)
            assert sample_rows(sampler, logits, specs, rows) == [alone[row] for row in rows]


def sample_rows(
    sampler: Sampler, logits: torch.Tensor, specs: list[SampleSpec], rows: list[int]
) -> list[SampledToken]:
    return sampler.sample(logits[rows], [specs[row] for row in rows])


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others() -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(3)).repeat(40, 1)

    def run(seed: int) -> list[int | None]:
        specs = [SampleSpec(SamplingParams(), seed, index) for index in range(40)]
        return [token.token_id for token in Sampler().sample(logits.clone(), specs)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert len(set(run(1))) > 20
