"""Where activations enter and leave the decoder layers of a stage, within transformers' own forward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from distllm.engine.pipeline.layer_range import LayerRange

HIDDEN_STATES = "hidden_states"
"""What transformers' decoder layers call their input, where it is not the first positional argument."""


class LayersDone(Exception):
    """Ends a forward pass behind a stage's last layer: what the model would do next is for the next stage."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__("the stage's layers are done")
        self.activations = activations  # [batch, num_tokens, width]


class Entrance:
    """Puts activations of `width` in the place of the hidden states that reach a stage's first layer.

    Until it receives some, what the model made of its absent embedding goes on, so that a model can be probed.
    """

    def __init__(self, layer: nn.Module, width: int) -> None:
        self.width = width
        self._received: Tensor | None = None
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)

    @contextmanager
    def receiving(self, activations: Tensor) -> Iterator[None]:
        """While it holds, forward passes go on from `activations` [batch, num_tokens, width]."""
        self._received = activations
        try:
            yield
        finally:
            self._received = None

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._received is None:
            return args, kwargs
        if args:
            return (self._received, *args[1:]), kwargs
        return args, {**kwargs, HIDDEN_STATES: self._received}


@dataclass(frozen=True, slots=True)
class Boundary:
    """The layers that a model was cut down to, and where activations come in; None where tokens do."""

    layers: LayerRange
    entrance: Entrance | None

    def receiving(self, activations: Tensor | None) -> AbstractContextManager[None]:
        """While it holds, forward passes go on from `activations` [batch, num_tokens, width], if any come in."""
        if self.entrance is None or activations is None:
            return nullcontext()
        return self.entrance.receiving(activations)


def end_behind(layer: nn.Module) -> None:
    """Let every forward pass end with LayersDone once `layer` has run."""
    layer.register_forward_hook(_leave)


def run_model(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Logits [batch, num_rows, vocab_size]; of a stage that is not the last its activations, of every token."""
    try:
        logits: Tensor = model(use_cache=False, **inputs).logits
    except LayersDone as done:
        return done.activations
    return logits


def hidden_states_of(output: Any) -> Any:
    """What a decoder layer's output says of hidden states: all of it, or its first item."""
    return output[0] if isinstance(output, tuple | list) else output


def _leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
    raise LayersDone(hidden_states_of(output))
