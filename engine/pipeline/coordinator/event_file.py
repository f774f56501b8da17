"""The latest events in the coordinator's state directory: those of an engine are told by the next one too."""

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from distllm.engine.durable import write_private
from distllm.engine.pipeline.coordinator.snapshot import ClusterEvent

logger = logging.getLogger("distllm.pipeline")

_FILE_NAME = "events.json"


class EventFile:
    """Of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _FILE_NAME

    def read(self) -> list[ClusterEvent]:
        """As they were written; none where there is no file that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[ClusterEvent])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("%s cannot be read, earlier events are not told: %s", self._path, error)
            return []

    def write(self, events: Sequence[ClusterEvent]) -> None:
        """In the place of those before. What cannot be written is said in the log."""
        try:
            write_private(self._path, msgspec.json.encode(events))
        except OSError as error:
            logger.warning("the events cannot be written: %s", error)
