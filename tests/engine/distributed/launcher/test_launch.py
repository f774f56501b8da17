"""What the launcher's variables say of a process's place."""

import os

import pytest

from distllm.engine.distributed.launcher.launch import (
    Launch,
    LaunchError,
    check_size,
    find_launch,
    launcher_binds_cores,
    read_secret,
)

ENVIRONMENT = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
LAUNCH = Launch(
    rank=3, size=4, local_rank=1, local_size=2, host=1, num_hosts=2, address="10.0.0.1", port=29500
)  # fmt: skip


def test_the_place_is_what_the_variables_say() -> None:
    assert find_launch(ENVIRONMENT) == LAUNCH


@pytest.mark.parametrize("missing", sorted(ENVIRONMENT))
def test_another_launcher_s_variables_are_none_of_ours(missing: str) -> None:
    assert find_launch({name: value for name, value in ENVIRONMENT.items() if name != missing}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "4"),
        ("RANK", "-1"),
        ("RANK", "two"),
        ("LOCAL_RANK", "2"),
        ("CROSS_RANK", "2"),
        ("WORLD_SIZE", ""),
        ("MASTER_PORT", "99999"),
        ("MASTER_PORT", "0"),
    ],
)
def test_a_place_that_cannot_be_is_refused_by_its_variable(name: str, value: str) -> None:
    with pytest.raises(LaunchError, match=f"{name}"):
        find_launch(ENVIRONMENT | {name: value})


def test_another_number_of_ranks_is_refused_with_both_numbers() -> None:
    check_size(LAUNCH, None)
    check_size(LAUNCH, 4)
    with pytest.raises(LaunchError, match=r"--tensor-parallel-size 3, but the launcher has started 4 ranks"):
        check_size(LAUNCH, 3)


@pytest.mark.parametrize("environment", [{}, {"DISTLLM_RANK_SECRET": "too short"}])
def test_several_hosts_need_a_secret_that_is_not_guessed(environment: dict[str, str]) -> None:
    assert read_secret(environment, 1) == b""
    with pytest.raises(LaunchError, match="need DISTLLM_RANK_SECRET"):
        read_secret(environment, 2)


def test_a_launcher_binds_cores_where_a_child_may_run_on_fewer_than_it() -> None:
    """This process is a child that is bound, or not, as its parent is."""
    before = launcher_binds_cores()
    own = os.sched_getaffinity(0)
    if before or len(own) < 2:
        pytest.skip("this process is bound, or could not be")
    os.sched_setaffinity(0, {min(own)})
    try:
        assert launcher_binds_cores()
    finally:
        os.sched_setaffinity(0, own)
