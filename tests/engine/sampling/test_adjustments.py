"""min_tokens, logit_bias and penalties, against figures worked out by hand."""

import pytest
import torch

from distllm.engine.interface import SampleSpec
from distllm.engine.sampling.adjustments import Adjustments
from distllm.engine.sampling.sampler import Sampler
from distllm.engine.sampling.token_counts import CountsCache
from distllm.engine.sampling_params import SamplingParams


def adjusted(logits: list[float], spec: SampleSpec) -> list[float]:
    rows = torch.tensor([logits, logits])
    untouched = SampleSpec(SamplingParams(), 0, 0)
    adjustments = Adjustments([untouched.params, spec.params], len(logits), torch.device("cpu"))
    adjustments.apply(rows, [untouched, spec], CountsCache())
    assert rows[0].tolist() == torch.tensor(logits).tolist()
    return [float(value) for value in rows[1]]


def test_frequency_and_presence_count_output_tokens_alone() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    spec = SampleSpec(params, 0, 3, history=[0, 0, 1, 2, 2, 1], num_prompt_tokens=3)
    assert adjusted([1.0, 2.0, 3.0, 4.0], spec) == [1.0, 2.0 - 0.5 - 0.25, 3.0 - 2 * 0.5 - 0.25, 4.0]


def test_repetition_divides_positive_and_multiplies_negative_logits_of_prompt_and_output() -> None:
    params = SamplingParams(repetition_penalty=2.0)
    spec = SampleSpec(params, 0, 1, history=[0, 0, 1], num_prompt_tokens=2)
    assert adjusted([4.0, -4.0, 4.0, -4.0], spec) == [2.0, -8.0, 4.0, -4.0]


def test_bias_comes_before_repetition_and_that_before_frequency_and_presence() -> None:
    params = SamplingParams(
        logit_bias={0: 2.0}, repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=0.5
    )
    spec = SampleSpec(params, 0, 1, history=[0], num_prompt_tokens=0)
    assert adjusted([4.0, 1.0], spec) == [(4.0 + 2.0) / 2.0 - 1.0 - 0.5, 1.0]


def penalised_alone(logits: torch.Tensor, spec: SampleSpec) -> torch.Tensor:
    """One row, token by token in plain float32 arithmetic: the definition."""
    params, row = spec.params, logits.clone()
    output = spec.history[spec.num_prompt_tokens :]
    for token_id in set(spec.history):
        value = row[token_id]
        if params.repetition_penalty != 1.0:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        if count := output.count(token_id):
            value = value - (torch.tensor(float(count)) * params.frequency_penalty + params.presence_penalty)
        row[token_id] = value
    return row


def test_penalties_of_a_batch_over_steps_have_the_bits_of_each_row_alone() -> None:
    generator, vocab_size, cache = torch.Generator().manual_seed(3), 40, CountsCache()
    params = [
        SamplingParams(repetition_penalty=1.3, frequency_penalty=0.37, presence_penalty=-0.11),
        SamplingParams(),
        SamplingParams(frequency_penalty=0.7),
        SamplingParams(repetition_penalty=0.77),
        SamplingParams(presence_penalty=1.9),
    ]
    draw = torch.randint(0, vocab_size, (5, 400), generator=generator).tolist()
    histories = [row[: 5 * number] for number, row in enumerate(draw)]
    for step in range(150):
        present = [number for number in range(5) if (step // 7 + number) % 4]
        specs = [SampleSpec(params[i], 0, step, histories[i], 5 * i) for i in present]
        logits = torch.randn(len(present), vocab_size, generator=generator)
        expected = [penalised_alone(row, spec) for row, spec in zip(logits, specs, strict=True)]
        Adjustments([spec.params for spec in specs], vocab_size, logits.device).apply(logits, specs, cache)
        assert torch.equal(logits, torch.stack(expected))
        for number in present:
            histories[number].append(draw[number][5 * number + step])


def test_another_history_in_the_place_of_an_old_one_is_counted_anew() -> None:
    cache, params = CountsCache(), SamplingParams(frequency_penalty=1.0)
    for token_id in range(50):
        logits = torch.zeros(1, 50)
        spec = SampleSpec(params, 0, 1, [token_id], 0)
        Adjustments([params], 50, logits.device).apply(logits, [spec], cache)
        assert logits[0].nonzero().flatten().tolist() == [token_id]


def test_negative_penalties_raise_what_was_said() -> None:
    params = SamplingParams(frequency_penalty=-1.0, presence_penalty=-0.5)
    spec = SampleSpec(params, 0, 2, history=[1, 1], num_prompt_tokens=0)
    assert adjusted([0.0, 0.0], spec) == [0.0, 2.5]


@pytest.mark.parametrize("factor", [1e300, 1e-300])
def test_extreme_repetition_penalties_leave_numbers(factor: float) -> None:
    spec = SampleSpec(SamplingParams(repetition_penalty=factor), 0, 1, history=[0, 1, 2], num_prompt_tokens=1)
    assert torch.tensor(adjusted([0.0, 9.0, -9.0], spec)).isfinite().all()


def test_min_tokens_bans_ends_until_enough_tokens_are_there() -> None:
    params = SamplingParams(min_tokens=3, eos_token_ids=(0, 2), stop_token_ids=(1,), max_tokens=9)
    banned = -float("inf")
    for index in (0, 2):
        assert adjusted([5.0, 6.0, 7.0, 1.0], SampleSpec(params, 0, index)) == [banned, banned, banned, 1.0]
    assert adjusted([5.0, 6.0, 7.0, 1.0], SampleSpec(params, 0, 3)) == [5.0, 6.0, 7.0, 1.0]


def test_ids_outside_the_vocabulary_are_passed_over() -> None:
    params = SamplingParams(
        logit_bias={1: 1.0, 99: 3.0},
        stop_token_ids=(99,),
        min_tokens=2,
        frequency_penalty=1.0,
        repetition_penalty=1.5,
    )
    spec = SampleSpec(params, 0, 0, history=[99, 99], num_prompt_tokens=1)
    assert adjusted([1.0, 1.0], spec) == [1.0, 2.0]


def test_penalties_without_any_output_yet_change_nothing() -> None:
    params = SamplingParams(frequency_penalty=1.0, presence_penalty=1.0)
    assert adjusted([1.0, 2.0], SampleSpec(params, 0, 0, history=[0, 1], num_prompt_tokens=2)) == [1.0, 2.0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_100_forces_a_token_and_of_minus_100_rules_it_out(temperature: float) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).repeat(200, 1)
    logits[:, 7] += 20.0
    forced = SamplingParams(temperature=temperature, logit_bias={3: 100.0})
    ruled_out = SamplingParams(temperature=temperature, logit_bias={7: -100.0})
    for params, is_right in ((forced, {3}.issuperset), (ruled_out, lambda ids: 7 not in ids)):
        specs = [SampleSpec(params, 1, index) for index in range(200)]
        assert is_right({token.token_id for token in Sampler().sample(logits.clone(), specs)})
