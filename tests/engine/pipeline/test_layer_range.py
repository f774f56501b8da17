"""A range of layers knows where it lies in the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.engine.pipeline.layer_range import LayerRange


@given(st.integers(-2, 6), st.integers(-2, 6), st.integers(-1, 6))
def test_a_range_is_refused_unless_it_has_layers_of_the_model(begin: int, end: int, num_layers: int) -> None:
    numbers = [number for number in range(num_layers) if begin <= number < end]
    if begin < 0 or end > num_layers or not numbers:
        with pytest.raises(ValueError, match="a stage cannot have layers"):
            LayerRange(begin, end, num_layers)
        return
    layers = LayerRange(begin, end, num_layers)
    assert [number for number in range(-3, 9) if number in layers] == numbers
    assert len(layers) == len(numbers)
    assert (layers.is_first, layers.is_last) == (0 in numbers, num_layers - 1 in numbers)
