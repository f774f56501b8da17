"""What may be asked for, and what is refused by name."""

import pytest

from distllm.engine.quantization.config import QuantizationConfig, QuantizationError


def test_int4_is_in_groups_of_32_and_int8_in_none_unless_told() -> None:
    assert QuantizationConfig.named("int4").linear.group_size == 32
    assert QuantizationConfig.named("int8").linear.group_size is None
    assert QuantizationConfig.named("int8", group_size=64).linear.group_size == 64


def test_mlps_may_have_groups_half_as_large() -> None:
    config = QuantizationConfig.named("int4", group_size=64, mlp_extra_grouping=True)
    assert (config.linear.group_size, config.mlp.group_size) == (64, 32)


def test_different_weights_have_different_names() -> None:
    configs = [
        QuantizationConfig.named("int8"),
        QuantizationConfig.named("int8", dynamic_activations=True),
        QuantizationConfig.named("int4"),
        QuantizationConfig.named("int4", group_size=64),
        QuantizationConfig.named("int4", group_size=64, symmetric=False),
        QuantizationConfig.named("int4", group_size=64, mlp_extra_grouping=True),
    ]
    assert len({config.name for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("int3", {}, "quantization 'int3' is unknown; choose int8 or int4"),
        ("int4", {"group_size": 48}, "group_size 48 is unknown; choose 32, 64 or 128"),
        ("int4", {"dynamic_activations": True}, "dynamic_activations goes with int8 weights"),
        ("int8", {"mlp_extra_grouping": True}, "mlp_extra_grouping halves groups, and there are none"),
    ],
)
def test_wrong_combinations_are_refused_by_name(name: str, options: dict[str, int], reason: str) -> None:
    with pytest.raises(QuantizationError, match=reason):
        QuantizationConfig.named(name, **options)  # type: ignore[arg-type]


def test_bits_other_than_8_and_4_are_refused() -> None:
    with pytest.raises(QuantizationError, match="quantization to 3 bits is unknown"):
        QuantizationConfig(bits=3)
    with pytest.raises(QuantizationError, match="int4 needs a group_size"):
        QuantizationConfig(bits=4)
