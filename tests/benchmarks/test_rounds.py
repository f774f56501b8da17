"""Medians, ratios and the table of the comparison."""

import pytest

from benchmarks.rounds import Round, markdown_table, medians, ratios


def test_medians_are_taken_figure_by_figure() -> None:
    rounds = [Round(output_throughput=value, ttft_ms=10 - value) for value in (1.0, 9.0, 2.0)]
    assert medians(rounds) == Round(output_throughput=2.0, ttft_ms=8.0)


def test_a_figure_that_no_round_has_stays_absent() -> None:
    assert medians([Round(output_throughput=1.0)]).tpot_ms is None


def test_ratios_say_how_many_times_better_whichever_way_is_better() -> None:
    ours = Round(output_throughput=300.0, ttft_ms=50.0, start_s=4.0)
    theirs = Round(output_throughput=100.0, ttft_ms=200.0)
    assert ratios(ours, theirs) == {"output_throughput": 3.0, "ttft_ms": 4.0}


def test_the_table_has_our_figures_and_the_others_with_ratios() -> None:
    table = markdown_table(
        {
            "ours": [Round(output_throughput=512.3, ttft_ms=80.0, start_s=2.5)],
            "theirs": [Round(output_throughput=64.0, ttft_ms=800.0)],
        }
    )
    lines = table.splitlines()
    assert lines[0] == "| median of rounds | `ours` | `theirs` |"
    assert lines[2] == "| output tokens/s, whole run | 512 | 64 (8x) |"
    assert lines[3] == "| median TTFT, ms | 80 | 800 (10x) |"
    assert lines[4] == "| start until ready, s | 2.5 |  |"
    assert len(lines) == 5


@pytest.mark.parametrize(("value", "shown"), [(1234.5, "1234"), (0.01234, "0.0123"), (99.96, "100")])
def test_numbers_have_three_figures_and_no_powers_of_ten(value: float, shown: str) -> None:
    assert f"| {shown} |" in markdown_table({"ours": [Round(output_throughput=value)]})
