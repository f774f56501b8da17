"""A checkpoint directory for a model that has none, or not as it is to be run.

It holds config and tokenizer, which are small; the weights are links to shared memory, or to other files.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from distllm.deepspeed.config import DeepSpeedConfig
from distllm.deepspeed.model_check import check_model
from distllm.deepspeed.private_directory import PrivateDirectory
from distllm.deepspeed.refusal import InvalidOption
from distllm.deepspeed.shared_weights import CannotShare, SharedWeights
from distllm.deepspeed.tokenizer_files import check_tokenizer, find_tokenizer, save_tokenizer
from distllm.engine.byte_size import byte_size
from distllm.engine.checkpoint import INDEX_NAME, WEIGHTS_NAME, CheckpointError, open_checkpoint, read_header
from distllm.engine.conversion.descriptor import DESCRIPTOR_NAME, Descriptor, find_descriptor
from distllm.engine.conversion.linked import link_converted
from distllm.engine.distributed.user_policy import InvalidPolicy, check_policy
from distllm.engine.hub import resolve

logger = logging.getLogger("distllm.deepspeed")


class ModelDirectory:
    """A directory that an engine loads from. Close it; its files are gone then."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        directory = PrivateDirectory()
        self._stack.callback(directory.close)
        self._model: PreTrainedModel | None = None
        self.path = directory.path

    @classmethod
    def open(cls, model: PreTrainedModel | str | Path, tokenizer: Any, config: DeepSpeedConfig) -> "ModelDirectory":
        """Of a model in memory or a checkpoint, with tokenizer and weights that are given in place of its own.

        Raises InvalidOption for what the ranks could not run as it is, and ModelNotFound.
        """
        files = None if config.checkpoint_dict is None else _checkpoint_files(config.checkpoint_dict)
        check_tokenizer(tokenizer)
        if isinstance(model, PreTrainedModel):
            check_model(model)
            if config.injection_policy is not None:
                _check_policy(model, config.injection_policy)
        elif not isinstance(model, str | Path):
            kind = type(model).__name__
            raise InvalidOption("model", f"must be a transformers model, a path or a name, not a {kind}")
        source = cls()
        try:
            if isinstance(model, PreTrainedModel):
                source._take_over(model, tokenizer, files)
            else:
                source._point_at(resolve(str(model)), tokenizer, files)
        except BaseException:
            source.close()
            raise
        return source

    def release(self) -> None:
        """Let go of a model's weights here, once the ranks have theirs: it is left on the meta device."""
        if self._model is not None:
            self._model.to("meta")
            (self.path / WEIGHTS_NAME).unlink(missing_ok=True)
            self._stack.close()

    def close(self) -> None:
        """Remove the directory; a model keeps its weights. Does nothing the second time."""
        self._stack.close()

    def _take_over(self, model: PreTrainedModel, tokenizer: Any, files: list[Path] | None) -> None:
        model.config.to_json_file(self.path / "config.json", use_diff=False)
        if model.generation_config is not None:
            model.generation_config.to_json_file(self.path / "generation_config.json")
        origin = model.name_or_path or model.config.name_or_path
        save_tokenizer(find_tokenizer(origin) if tokenizer is None else tokenizer, self.path)
        if files is None:
            self._model = model
            self._share(model)
        else:
            _link(self.path, files)

    def _point_at(self, checkpoint: Path, tokenizer: Any, files: list[Path] | None) -> None:
        AutoConfig.from_pretrained(checkpoint, local_files_only=True).to_json_file(
            self.path / "config.json", use_diff=False
        )
        if (checkpoint / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(checkpoint).to_json_file(self.path / "generation_config.json")
        save_tokenizer(find_tokenizer(checkpoint) if tokenizer is None else tokenizer, self.path)
        descriptor = find_descriptor(checkpoint)
        own = descriptor.paths if descriptor is not None else open_checkpoint(checkpoint).shards
        _link(self.path, files or [file.resolve() for file in own])

    def _share(self, model: PreTrainedModel) -> None:
        started_s = time.monotonic()
        try:
            shared = SharedWeights(_stored_tensors(model))
        except CannotShare as error:
            raise InvalidOption("model", f"cannot be taken over: {error}") from None
        self._stack.callback(shared.close)
        (self.path / WEIGHTS_NAME).symlink_to(shared.path)
        elapsed_s = time.monotonic() - started_s
        logger.debug("moved %s of weights to shared memory in %.2f s", byte_size(shared.num_bytes), elapsed_s)


def _check_policy(model: PreTrainedModel, policy: Mapping[str, tuple[str, ...]]) -> None:
    try:
        check_policy(model, policy)
    except InvalidPolicy as error:
        raise InvalidOption("injection_policy", str(error).removeprefix("injection_policy: ")) from None


def _stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint of the model would store, the tensors themselves: each tied one once."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    tied: Mapping[str, str] = model.all_tied_weights_keys
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in tied or tensors.get(tied[name]) is not tensor
    }


def _checkpoint_files(checkpoint: Mapping[str, Any]) -> list[Path]:
    files = [(Path(checkpoint["base_dir"]) / name).expanduser().resolve() for name in checkpoint["checkpoints"]]
    if missing := next((file for file in files if not file.is_file()), None):
        raise InvalidOption("checkpoint_dict", f"names {missing}, which is no file: see base_dir")
    return files


def _link(path: Path, files: list[Path]) -> None:
    """Put `files`, which together hold all tensors, into a checkpoint directory. Raises InvalidOption."""
    try:
        if (descriptor := _converted(files)) is not None:
            return link_converted(descriptor, path)
        return _link_shards(path, files)
    except CheckpointError as error:
        raise InvalidOption("checkpoint_dict", str(error)) from None


def _converted(files: list[Path]) -> Descriptor | None:
    """The descriptor of files that are one a rank; None for any others. Raises InvalidOption for some of them."""
    descriptor = find_descriptor(files[0].parent)
    if descriptor is None or not descriptor.is_divided:
        return None
    if [path.resolve() for path in descriptor.paths] != files:
        raise InvalidOption("checkpoint_dict", f"must list all files that {DESCRIPTOR_NAME} does, in its order")
    return descriptor


def _link_shards(path: Path, files: list[Path]) -> None:
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    weight_map: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        (path / name).symlink_to(file.resolve())
        weight_map |= {tensor.name: name for tensor in read_header(path / name)}
    (path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
