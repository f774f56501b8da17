"""A peer measures when it is asked, remembers what it measured, and tells what it could not."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from distllm.engine.executor.pipeline import describe_model
from distllm.engine.pipeline.coordinator.model_sample import sample_model
from distllm.engine.pipeline.measuring import surveyor as module
from distllm.engine.pipeline.measuring.link_probing import probe_links
from distllm.engine.pipeline.measuring.surveyor import Surveyor
from distllm.engine.pipeline.messages import LayerSample, Measured, MeasureFailed, Probed
from distllm.engine.pipeline.patience import Patience
from distllm.engine.pipeline.placement.measurements import RowTimes
from distllm.engine.pipeline.placement.measuring import ComputeTimes
from distllm.engine.pipeline.security.peer_id import PeerId
from distllm.engine.pipeline.transport.client import Address, Http2Client, Unreachable
from tests.engine.pipeline.stages import config_of

TIMES = ComputeTimes(RowTimes((1,), (0.001,)), RowTimes((1,), (0.002,)), 0.0001)


@pytest.fixture
def compute() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as compute:
        yield compute


@pytest.fixture
def surveyor(tmp_path: Path, compute: ThreadPoolExecutor) -> Surveyor:
    return surveyor_of(tmp_path, compute)


def surveyor_of(directory: Path, compute: ThreadPoolExecutor, num_threads: int = 1) -> Surveyor:
    here = replace(config_of(directory), num_threads=num_threads)
    return Surveyor(here, 1000, directory / "measured", compute)


@pytest.fixture
def sample(checkpoint: Callable[[str], Path]) -> LayerSample:
    config = config_of(checkpoint("llama"))
    return sample_model(config, describe_model(config, "")).sample


@pytest.fixture
def num_timings(monkeypatch: pytest.MonkeyPatch) -> list[LayerSample]:
    """One entry a timing, which takes no time."""
    timed: list[LayerSample] = []

    def time_layer(sample: LayerSample, *_: object) -> ComputeTimes:
        timed.append(sample)
        return TIMES

    monkeypatch.setattr(module, "time_layer", time_layer)
    return timed


def times_in(report: Measured | MeasureFailed) -> tuple[ComputeTimes, int]:
    assert isinstance(report, Measured)
    return report.times, report.free_bytes


async def test_what_codecs_cost_is_measured_with_the_layer(
    surveyor: Surveyor, sample: LayerSample, num_timings: list[LayerSample]
) -> None:
    report = await surveyor.measure(sample)
    assert isinstance(report, Measured)
    assert report.codecs.keys() == {"none", "fp8", "int8"}
    assert report.codecs["none"].bytes_per_token == 4 * sample.width
    assert report.codecs["fp8"].bytes_per_token == sample.width + 4


async def test_a_layer_is_timed_once_for_each_sample_and_number_of_threads(
    sample: LayerSample, num_timings: list[LayerSample], tmp_path: Path, compute: ThreadPoolExecutor
) -> None:
    surveyor, wider = surveyor_of(tmp_path, compute), surveyor_of(tmp_path, compute, num_threads=2)
    for _ in range(2):
        assert times_in(await surveyor.measure(sample)) == (TIMES, 1000)
    assert len(num_timings) == 1
    await surveyor.measure(msgspec.structs.replace(sample, config_json=b"{}"))
    assert len(num_timings) == 2
    await surveyor_of(tmp_path, compute).measure(sample)
    assert len(num_timings) == 2, "what was measured outlives the process"
    await wider.measure(sample)
    assert len(num_timings) == 3


async def test_what_was_kept_and_is_damaged_is_measured_again(
    surveyor: Surveyor, sample: LayerSample, num_timings: list[LayerSample], tmp_path: Path
) -> None:
    await surveyor.measure(sample)
    (kept,) = (tmp_path / "measured").iterdir()
    kept.write_bytes(kept.read_bytes()[:-3])
    assert times_in(await surveyor.measure(sample)) == (TIMES, 1000)
    assert len(num_timings) == 2


async def test_a_layer_that_cannot_be_timed_is_told(surveyor: Surveyor, sample: LayerSample) -> None:
    report = await surveyor.measure(msgspec.structs.replace(sample, config_json=b"{}"))
    assert isinstance(report, MeasureFailed)
    assert "config.json" in report.reason


async def test_ends_that_cannot_be_reached_are_told_by_name() -> None:
    async def connect(end: Address) -> Http2Client:
        raise Unreachable(f"no way to {end.peer_id}")

    coordinator, peer = (Address(PeerId(name), "127.0.0.1", 1) for name in ("coordinator", "b-1"))
    unreachable = {"coordinator": "no way to coordinator", "b-1": "no way to b-1"}
    once = Patience(retry_attempts=0)
    found = await probe_links("a-1", coordinator, [peer], connect, once)
    assert found == Probed(links=(), unreachable=unreachable)
    assert (await probe_links("a-1", None, [peer], connect, once)).unreachable == {"b-1": "no way to b-1"}
