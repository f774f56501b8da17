"""Layers on their way to a GPU pass through host memory unchanged, whatever their size."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distllm.engine.offload import sources
from distllm.engine.offload.disk_file import DiskFile
from distllm.engine.offload.errors import OffloadError
from distllm.engine.offload.layer_tensors import LayerTensors
from distllm.engine.offload.sources import HostMemory, Source, StagedDisk


@dataclass
class Event:
    """Notes what was asked of it."""

    calls: list[str] = field(default_factory=list)

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def staged_disk(folder: Path, events: list[Event]) -> StagedDisk:
    def make_event() -> Event:
        events.append(Event())
        return events[-1]

    return StagedDisk(DiskFile(folder), lambda buffer: None, make_event)


MAKERS: list[Callable[[Path], Source]] = [
    lambda folder: HostMemory(lambda buffer: None),
    lambda folder: staged_disk(folder, []),
]


def keep(source: Source, contents: list[Tensor]) -> tuple[LayerTensors, list[Tensor]]:
    """A layer of copies of `contents`, stored and emptied."""
    layer, tensors = LayerTensors(), [content.clone() for content in contents]
    for tensor in tensors:
        layer.add(tensor, source.keep(tensor))
    return layer, tensors


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_kept_comes_back(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    source = make(tmp_path)
    contents = [torch.randn(37, 19), torch.randn(3, 5000).bfloat16(), torch.arange(100, dtype=torch.int8)]
    keep(source, [torch.randn(77)])
    layer, tensors = keep(source, contents)
    assert [tensor.numel() for tensor in tensors] == [0, 0, 0]
    room = torch.zeros(layer.num_bytes, dtype=torch.uint8)
    source.start()
    source.copy_to(room, layer)
    layer.bind(room)
    assert all(torch.equal(tensor, content) for tensor, content in zip(tensors, contents, strict=True))
    source.close()


def test_a_layer_larger_than_the_stages_passes_through_both_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_STAGE_BYTES", 8192)
    events: list[Event] = []
    source = staged_disk(tmp_path, events)
    layer, _ = keep(source, [torch.arange(7000, dtype=torch.float32)])
    room = torch.zeros(layer.num_bytes, dtype=torch.uint8)
    source.start()
    source.copy_to(room, layer)
    assert torch.equal(room.view(torch.float32)[:7000], torch.arange(7000, dtype=torch.float32))
    assert [event.calls for event in events] == [["synchronize", "record"] * 2, ["synchronize", "record"] * 2]
    source.close()


def test_dropped_layers_leave_host_memory() -> None:
    source = HostMemory(lambda buffer: None)
    layer, _ = keep(source, [torch.randn(10)])
    source.drop(layer)
    with pytest.raises(KeyError):
        source.copy_to(torch.zeros(layer.num_bytes, dtype=torch.uint8), layer)


def test_the_last_of_the_hosts_memory_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "measure_free_host_bytes", lambda: 1 << 30)
    with pytest.raises(OffloadError, match="use --offload disk"):
        HostMemory(lambda buffer: None).keep(torch.randn(10))
