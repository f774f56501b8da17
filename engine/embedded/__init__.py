"""The embedded model: a small Llama-architecture checkpoint that ships with the package, and all that made it.

Importing this package costs nothing and needs no torch; the submodules that train and evaluate do.
"""

from pathlib import Path

EMBEDDED_MODEL_NAME = "distllm-embedded"
"""In the API, where it is served under no other name."""


def checkpoint_path() -> Path:
    """The directory of the shipped checkpoint, in Hugging Face format."""
    return Path(__file__).resolve().parent / "checkpoint"
