"""Codecs of activations: how far off they are, whose bytes a token's are, and what they do to odd numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distllm.engine.pipeline.wire.activation_codec import CODECS, MalformedActivations, bytes_per_token
from distllm.engine.pipeline.wire.codec_cost import measure_codec
from distllm.engine.pipeline.wire.codec_names import CodecName
from distllm.engine.pipeline.wire.frame import decode_frame, encode_frame
from tests.engine.pipeline.wire.frames import StepHeader, bits

LOSSY: list[CodecName] = ["fp8", "int8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HIDDEN = 1000  # seven groups and a partial one


def gaussian_rows(num_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num_rows, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)


def rows_with_outliers(num_rows: int) -> Tensor:
    rows = gaussian_rows(num_rows)
    rows[:, 5::512] *= 300
    return rows


def through(name: CodecName, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """As rows arrive at the other end of an edge."""
    sent = bytearray(b"".join(encode_frame(1, StepHeader(0, ""), CODECS[name].encode(rows))))
    return CODECS[name].decode(decode_frame(sent, 1 << 24).tensors, dtype)


def relative_error(found: Tensor, rows: Tensor) -> Tensor:
    """Of the norm of each row."""
    off, norm = (found.double() - rows.double()).square().sum(1), rows.double().square().sum(1)
    return off.div(norm).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_activations_keep_their_bits(dtype: torch.dtype) -> None:
    rows = gaussian_rows(3, dtype)
    rows[1, 3] = float("nan")
    assert bits(through("none", rows, dtype)) == bits(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "least", "most"), [("fp8", 0.02, 0.03), ("int8", 0.005, 0.008)])
def test_gaussian_rows_are_as_far_off_as_is_documented(
    name: CodecName, least: float, most: float, dtype: torch.dtype
) -> None:
    rows = gaussian_rows(64, dtype)
    error = relative_error(through(name, rows, dtype), rows)
    assert error.min() > least
    assert error.max() < most


def test_beside_outliers_fp8_is_as_exact_and_int8_loses_their_groups_alone() -> None:
    rows = rows_with_outliers(64)
    ordinary = rows.abs().amax(0) < 20
    assert relative_error(through("fp8", rows)[:, ordinary], rows[:, ordinary]).max() < 0.04
    off = relative_error(through("int8", rows), rows)
    assert off.max() < 0.03
    untouched = torch.arange(HIDDEN) // 128 % 4 > 0
    assert relative_error(through("int8", rows)[:, untouched], rows[:, untouched]).max() < 0.008


@pytest.mark.parametrize("name", LOSSY)
@given(data=st.data())
def test_every_element_is_within_half_a_code(name: CodecName, data: st.DataObject) -> None:
    magnitudes = st.floats(-(2.0**100), 2.0**100, width=32)
    row = torch.tensor([data.draw(st.lists(magnitudes, min_size=1, max_size=300))])
    most = row.abs().max().double()
    within = most / 127 / 2 if name == "int8" else torch.maximum(row.abs() / 16, most / 448 * 2**-10).double()
    assert torch.all((through(name, row).double() - row.double()).abs() <= within * (1 + 1e-5) + 1e-30)


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_a_token_depends_on_itself_alone(name: CodecName, data: st.DataObject) -> None:
    hidden_size, num_rows = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 20))
    seed = data.draw(st.integers(0, 2**32))
    rows = torch.randn(num_rows, hidden_size, generator=torch.Generator().manual_seed(seed)).bfloat16()
    token = data.draw(st.integers(0, num_rows - 1))
    together, alone = CODECS[name].encode(rows), CODECS[name].encode(rows[token : token + 1])
    assert [bits(it[token : token + 1]) for it in together] == [bits(it) for it in alone]
    decoded = CODECS[name].decode(together, torch.bfloat16)[token : token + 1]
    assert bits(decoded) == bits(CODECS[name].decode(alone, torch.bfloat16))


@pytest.mark.parametrize("name", CODECS)
def test_zeros_are_exact_and_no_tokens_are_none(name: CodecName) -> None:
    rows = gaussian_rows(3)
    rows[1] = 0
    rows[2, ::2] = 0
    found = through(name, rows)
    assert not found[1].any()
    assert not found[2, ::2].any()
    assert through(name, rows[:0]).shape == (0, HIDDEN)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_finite_stays_so_and_in_its_token(name: CodecName, odd: float) -> None:
    rows = gaussian_rows(3)
    rows[1, 998] = odd
    found = through(name, rows)
    assert not found[1, 998].isfinite()
    assert found[[0, 2]].isfinite().all()
    if name == "int8":
        assert found[1, :896].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSY)
def test_the_largest_and_least_numbers_of_a_half_stay_finite(name: CodecName, dtype: torch.dtype) -> None:
    info = torch.finfo(torch.float16 if dtype == torch.float16 else torch.bfloat16)
    rows = torch.tensor([[info.max, -info.max, 1.0], [info.tiny, -info.tiny, 0.0]], dtype=dtype)
    found = through(name, rows, dtype)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, :2], rows[0, :2])


def test_every_code_of_fp8_means_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(1, 256)
    numbers = codes.float().isfinite()
    found = CODECS["fp8"].decode((codes, torch.full((1, 1), 0.3)), torch.float32)
    assert torch.equal(found[numbers], (codes.float() * 0.3)[numbers])


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("hidden_size", [1, 128, 129, 4096])
def test_bytes_per_token_are_those_that_are_sent(name: CodecName, hidden_size: int) -> None:
    sent = CODECS[name].encode(torch.ones(3, hidden_size, dtype=torch.bfloat16))
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in sent)
    assert num_bytes == 3 * bytes_per_token(name, hidden_size, torch.bfloat16)


CODES, FP8 = torch.zeros(2, 200, dtype=torch.int8), torch.zeros(2, 200).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("none", []),
        ("none", [torch.zeros(2, 200)]),  # float32 where bfloat16 is due
        ("none", [torch.zeros(200, dtype=torch.bfloat16)]),
        ("fp8", [FP8]),
        ("fp8", [FP8, torch.zeros(2)]),
        ("fp8", [FP8, torch.zeros(1, 1)]),
        ("fp8", [FP8, torch.zeros(2, 1), torch.zeros(2, 1)]),
        ("fp8", [CODES, torch.zeros(2, 1)]),
        ("int8", [CODES, torch.zeros(2, 1)]),
        ("int8", [CODES, torch.zeros(2, 3)]),
        ("int8", [CODES, torch.zeros(2, 2).double()]),
        ("int8", [CODES.view(-1), torch.zeros(2, 2)]),
    ],
)
def test_tensors_that_are_no_activations_are_refused(name: CodecName, tensors: list[Tensor]) -> None:
    with pytest.raises(MalformedActivations):
        CODECS[name].decode(tensors, torch.bfloat16)


@pytest.mark.parametrize("name", CODECS)
def test_the_cost_of_a_codec_is_measured(name: CodecName) -> None:
    cost = measure_codec(name, 4, HIDDEN, torch.bfloat16, torch.device("cpu"))
    assert cost.bytes_per_token == {"none": 2000, "fp8": 1004, "int8": 1032}[name]
    assert 0 < cost.encode_rows_per_s < 1e12
    assert 0 < cost.decode_rows_per_s < 1e12
