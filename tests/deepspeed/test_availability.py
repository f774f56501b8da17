"""is_deepspeed_available tells why not."""

from importlib import metadata

import pytest

from distllm import Availability, InvalidOption, init_inference, is_deepspeed_available
from distllm.deepspeed import availability, engine


def test_it_is_available_here_and_says_nothing() -> None:
    assert is_deepspeed_available()
    assert is_deepspeed_available().reason is None


@pytest.mark.parametrize("package", ["torch", "deepspeed"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "find_spec", lambda name: None if name == package else object())
    found = is_deepspeed_available()
    assert not found
    assert found.reason == f"{package} is not installed: pip install {package}"


def test_several_ranks_without_deepspeed_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "is_deepspeed_available", lambda: Availability("it is not installed"))
    with pytest.raises(InvalidOption, match=r"^tensor_parallel_size above 1 needs DeepSpeed: it is not installed"):
        init_inference("x", {"mp_size": 2})


def test_an_old_version_is_named_with_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "version", lambda _: "0.14.2")
    reason = is_deepspeed_available().reason
    assert reason == "deepspeed is 0.14.2, and 0.19 is the least that serves: pip install -U deepspeed"


def test_a_package_without_metadata_is_half_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(availability, "version", no_version)
    assert "half installed" in str(is_deepspeed_available().reason)
