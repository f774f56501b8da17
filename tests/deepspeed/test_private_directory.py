"""A temporary directory belongs to the process that made it."""

from distllm.deepspeed.private_directory import PrivateDirectory
from tests.forked import forked


def test_a_forked_child_that_closes_it_leaves_it_to_its_parent() -> None:
    directory = PrivateDirectory()

    def close() -> str:
        directory.close()
        return "closed"

    assert forked(close) == "closed"
    assert directory.path.is_dir()
    directory.close()
    assert not directory.path.exists()
