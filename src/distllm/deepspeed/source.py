"""Where an engine finds the weights it is to run: a checkpoint directory, made for a model that is in memory.

The directory of such a model holds its config and tokenizer, which are small; its weights are links to shared
memory, or to the files that a checkpoint dict names.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from distllm.deepspeed.private_directory import PrivateDirectory
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.shared_weights import CannotShare, SharedWeights
from distllm.engine.byte_size import byte_size
from distllm.engine.checkpoint import INDEX_NAME, WEIGHTS_NAME, open_checkpoint

logger = logging.getLogger("distllm.deepspeed")


class ModelDirectory:
    """A checkpoint directory of a model that is in memory. Close it; its files are gone then."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, files: Mapping[str, Path] | None = None) -> None:
        """`files` name the safetensors files, by tensor, that hold the weights in place of the model itself.

        Raises InvalidOption for what the ranks could not run as it is.
        """
        _check_class(model)
        self._model = model
        self._stack = ExitStack()
        try:
            directory = PrivateDirectory()
            self._stack.callback(directory.close)
            self.path = directory.path
            _write_small_files(self.path, model, tokenizer)
            if files is None:
                self._share()
            else:
                _link(self.path, files)
        except BaseException:
            self.close()
            raise

    def release(self) -> None:
        """Let go of the weights in this process, once the ranks have theirs: the model is on the meta device."""
        self._model.to("meta")
        (self.path / WEIGHTS_NAME).unlink(missing_ok=True)
        self._stack.pop_all().close()

    def close(self) -> None:
        """Remove the directory; the model keeps its weights. Does nothing the second time."""
        self._stack.close()

    def _share(self) -> None:
        started_s = time.monotonic()
        try:
            shared = SharedWeights(_stored_tensors(self._model))
        except CannotShare as error:
            raise InvalidOption("model", str(error)) from None
        self._stack.callback(shared.close)
        (self.path / WEIGHTS_NAME).symlink_to(shared.path)
        elapsed_s = time.monotonic() - started_s
        logger.debug("moved %s of weights to shared memory in %.2f s", byte_size(shared.num_bytes), elapsed_s)


def _check_class(model: PreTrainedModel) -> None:
    """The ranks build the model from its config: it must be the class that transformers builds."""
    if not isinstance(model, PreTrainedModel):
        raise InvalidOption(
            "model", f"must be a transformers model, a path or a name, not a {type(model).__name__}"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise InvalidOption("model", "is quantized in memory: give the checkpoint's path, and its codes are read")
    built = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if built is not type(model):
        known = f"its config stands for {built.__name__}" if built else "its config stands for no decoder"
        raise InvalidOption(
            "model", f"is a {type(model).__name__}, but {known}, which is what the ranks would build"
        )


def _write_small_files(path: Path, model: PreTrainedModel, tokenizer: Any) -> None:
    model.config.to_json_file(path / "config.json", use_diff=False)
    if model.generation_config is not None:
        model.generation_config.to_json_file(path / "generation_config.json")
    (tokenizer or find_tokenizer(model)).save_pretrained(path)


def find_tokenizer(model: PreTrainedModel) -> Any:
    """The tokenizer beside the files that a model was loaded from. Raises InvalidOption where there are none."""
    origin = model.name_or_path or model.config.name_or_path
    try:
        return AutoTokenizer.from_pretrained(origin, local_files_only=True)
    except Exception:  # whatever transformers raises for a place without one
        raise InvalidOption(
            "tokenizer", "is missing, and the model's own place has none: give a tokenizer"
        ) from None


def _stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint of the model would store, the tensors themselves: each tied one once."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    tied: Mapping[str, str] = model.all_tied_weights_keys
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in tied or tensors.get(tied[name]) is not tensor
    }


def _link(path: Path, files: Mapping[str, Path]) -> None:
    """Make `path` a checkpoint whose tensors lie in `files`, by the tensors' names."""
    shards = {file: f"{number:05}.safetensors" for number, file in enumerate(sorted(set(files.values())))}
    for file, name in shards.items():
        (path / name).symlink_to(file)
    weight_map = {tensor: shards[file] for tensor, file in files.items()}
    (path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    open_checkpoint(path)
