"""Which of a model's decoder layers a stage has. Importable without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers [begin, end) of a model that has `num_layers`; at least one of them. Raises ValueError for any other.

    layers:  | 0 ... | begin ......... | end ... num_layers
             before  | of the stage    | after
    """

    begin: int
    end: int
    num_layers: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= self.num_layers:
            raise ValueError(f"a stage cannot have layers {self.begin} to {self.end} of {self.num_layers}")

    def __len__(self) -> int:
        return self.end - self.begin

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self.begin <= number < self.end

    def __str__(self) -> str:
        return f"layers {self.begin} to {self.end - 1} of {self.num_layers}"

    @property
    def is_first(self) -> bool:
        """Whether the stage embeds tokens."""
        return self.begin == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage has the final norm and the output head."""
        return self.end == self.num_layers
