"""Checkpoints without tokenizer.json: converted once, in a child process that may import torch, and cached."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distllm.engine.checkpoint import refuse_pointer
from distllm.engine.python_command import python_command

_FAST_FILE = "tokenizer.json"
_SLOW_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model", "tekken.json")
_TIMEOUT_S = 300


class TokenizerError(ValueError):
    """The checkpoint has no usable tokenizer; the message names the directory and the remedy."""


@contextlib.contextmanager
def fast_tokenizer_directory(directory: Path) -> Iterator[Path]:
    """A directory with tokenizer.json: the checkpoint's own, else a converted one. Raises TokenizerError.

    Errors of reading the tokenizer inside the block are turned into TokenizerError as well. Raises CheckpointError
    where git left its note of a file instead of the file.
    """
    for name in (_FAST_FILE, *_SLOW_FILES):
        refuse_pointer(directory / name)
    found = directory if (directory / _FAST_FILE).is_file() else _converted(directory)
    try:
        yield found
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise TokenizerError(
            f"the tokenizer in {found} cannot be read: {reason}; see its tokenizer.json and tokenizer_config.json"
        ) from error


def _converted(directory: Path) -> Path:
    sources = [directory / name for name in _SLOW_FILES if (directory / name).is_file()]
    if not sources:
        raise TokenizerError(
            f"{directory} holds no tokenizer: expected {_FAST_FILE}, or one of {', '.join(_SLOW_FILES)}"
        )
    try:
        target = _cache_directory() / _fingerprint(sources)
        if not (target / _FAST_FILE).is_file():
            _convert_in_child(directory, target)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise TokenizerError(
            f"the tokenizer of {directory} has to be converted and cannot be kept: {error}; "
            "let XDG_CACHE_HOME name a directory that can be written"
        ) from None
    return target


def _convert_in_child(source: Path, target: Path) -> None:
    """Convert into a temporary directory and move it into place, so that a cached one is always whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = python_command(__name__, str(source), scratch)
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise TokenizerError(f"converting the tokenizer of {source} took over {_TIMEOUT_S} s") from None
        if child.returncode != 0 or not (Path(scratch) / _FAST_FILE).is_file():
            last_line = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise TokenizerError(f"{source} has no {_FAST_FILE} and its tokenizer cannot be converted: {last_line}")
        finished = Path(scratch) / "finished"
        finished.mkdir()
        for path in list(Path(scratch).iterdir()):
            if path != finished:
                path.rename(finished / path.name)
        with contextlib.suppress(OSError):  # another process was first
            finished.rename(target)


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distllm" / "tokenizers"


def _fingerprint(sources: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        status = path.stat()
        digest.update(f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _convert(source: str, target: str) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(target)


if __name__ == "__main__":
    _convert(*sys.argv[1:3])
