"""What a checkpoint has beside its weights: config, tokenizer, chat templates. Knows what not to take along."""

import shutil
from pathlib import Path

from distllm.engine.conversion.descriptor import DESCRIPTOR_NAME
from distllm.engine.conversion.manifest import MANIFEST_NAME

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack"})
_OF_THE_SOURCE = frozenset({DESCRIPTOR_NAME, MANIFEST_NAME})
_DIRECTORIES = ("additional_chat_templates",)


def copy_small_files(source: Path, to: Path) -> None:
    """Copy the contents of every file that holds no weights and tells nothing of files that do."""
    for directory in (source, *(source / name for name in _DIRECTORIES)):
        if directory.is_dir():
            for file in sorted(directory.iterdir()):
                if file.is_file() and _is_small(file):
                    target = to / file.relative_to(source)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, target)


def _is_small(file: Path) -> bool:
    is_index = file.name.endswith(".index.json")
    return not (
        is_index or file.name.startswith(".") or file.suffix in _WEIGHT_SUFFIXES or file.name in _OF_THE_SOURCE
    )
