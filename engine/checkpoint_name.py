"""What a checkpoint is called where it has no name of its own but its folder."""

from pathlib import Path

from distllm.engine.embedded import EMBEDDED_MODEL_NAME, checkpoint_path

_HUB_PREFIX = "models--"


def checkpoint_name(path: Path) -> str:
    """The embedded model's name, the one on the hub of what lies in its cache, or else that of the folder.

    The cache has `models--OWNER--NAME/snapshots/REVISION`.
    """
    if path.resolve() == checkpoint_path():
        return EMBEDDED_MODEL_NAME
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith(_HUB_PREFIX):
        return repository.removeprefix(_HUB_PREFIX).replace("--", "/")
    return path.name
