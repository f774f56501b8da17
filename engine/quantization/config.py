"""How weights are to be quantized: values that a user chooses. Importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

QuantizationName = Literal["int8", "int4"]
QuantizationWish = Literal["none", "int8", "int4"]
GROUP_SIZES = (32, 64, 128)
DEFAULT_INT4_GROUP_SIZE = 32
_BITS: Mapping[str, int] = {"int8": 8, "int4": 4}


class QuantizationError(ValueError):
    """A combination that cannot be; the message names the option and what goes instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightScheme:
    """How one weight is stored. `group_size` inputs share a scale; None: all inputs of an output feature.

    Symmetric codes have their zero in the middle; others have a zero point a group. With `dynamic_activations` the
    inputs are rounded to eight bits as well, by a scale a row.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    dynamic_activations: bool = False

    @property
    def name(self) -> str:
        """Such as w4g32, w8a8 or w4g128z, z for zero points."""
        group = "" if self.group_size is None else f"g{self.group_size}"
        return f"w{self.bits}{'a8' if self.dynamic_activations else ''}{group}{'' if self.symmetric else 'z'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """What `--quantization` and its options say. Raises QuantizationError.

    INT4 is always in groups, of 32 unless told; INT8 has a scale an output feature unless told. With
    `mlp_extra_grouping` the groups of MLPs and experts are half as large.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    dynamic_activations: bool = False
    mlp_extra_grouping: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _BITS.values():
            raise QuantizationError(f"quantization to {self.bits} bits is unknown; choose int8 or int4")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise QuantizationError(f"group_size {self.group_size} is unknown; choose {_listed(GROUP_SIZES)}")
        if self.bits == 4 and self.group_size is None:
            raise QuantizationError("int4 needs a group_size; choose " + _listed(GROUP_SIZES))
        if self.dynamic_activations and self.bits != 8:
            raise QuantizationError("dynamic_activations goes with int8 weights, not with int4")
        if self.mlp_extra_grouping and self.group_size is None:
            raise QuantizationError("mlp_extra_grouping halves groups, and there are none: set group_size")

    @classmethod
    def named(
        cls,
        name: str,
        *,
        group_size: int | None = None,
        symmetric: bool = True,
        dynamic_activations: bool = False,
        mlp_extra_grouping: bool = False,
    ) -> "QuantizationConfig":
        """The config of "int8" or "int4" with its defaults. Raises QuantizationError."""
        if name not in _BITS:
            raise QuantizationError(f"quantization {name!r} is unknown; choose int8 or int4")
        return cls(
            bits=_BITS[name],
            group_size=group_size or (DEFAULT_INT4_GROUP_SIZE if name == "int4" else None),
            symmetric=symmetric,
            dynamic_activations=dynamic_activations,
            mlp_extra_grouping=mlp_extra_grouping,
        )

    @property
    def linear(self) -> WeightScheme:
        """Of linear layers outside MLPs."""
        return self._scheme(self.group_size)

    @property
    def mlp(self) -> WeightScheme:
        """Of MLPs and experts."""
        halves = self.mlp_extra_grouping and self.group_size is not None
        return self._scheme(self.group_size // 2 if halves and self.group_size else self.group_size)

    @property
    def vocabulary(self) -> WeightScheme:
        """Of the embedding and the output head, which four bits would hurt most: always eight, a scale a row."""
        return WeightScheme(bits=8)

    @property
    def name(self) -> str:
        """Equal for equal weights: part of what names an engine's numerics."""
        return self.linear.name + ("x" if self.mlp_extra_grouping else "")

    def _scheme(self, group_size: int | None) -> WeightScheme:
        return WeightScheme(
            bits=self.bits,
            group_size=group_size,
            symmetric=self.symmetric,
            dynamic_activations=self.dynamic_activations,
        )


def _listed(sizes: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"
