"""The package is the top folders themselves: links, never copies."""

from pathlib import Path

import pytest

import distllm

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["server", "engine", "scheduler", "clients"])
def test_package_folders_link_to_the_top_folders(name: str) -> None:
    link = ROOT / "src" / "distllm" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name
    assert (link / "__init__.py").is_file()


def test_the_imported_package_is_this_checkout() -> None:
    assert Path(distllm.__file__).resolve() == ROOT / "src" / "distllm" / "__init__.py"
