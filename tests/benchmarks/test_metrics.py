"""Figures computed by hand, in the definitions of `vllm bench serve`."""

import json

import pytest

from benchmarks.answers import Answer, read_answer
from benchmarks.connection import Exchange
from benchmarks.load import LoadResult
from benchmarks.metrics import Distribution, Goals, peak_concurrency, summarize
from benchmarks.report import format_summary


def answer(times_s: tuple[float, ...], num_tokens: int | None = None, sent_s: float = 0.0) -> Answer:
    return Answer(sent_s, times_s, 10, num_tokens or len(times_s), is_counted_by_usage=True)


def failed(reason: str = "refused") -> Answer:
    return Answer(0.0, (), 10, 0, False, failure=reason)


def exchange(*events: object, status: int = 200) -> Exchange:
    """Event i arrives i + 1 seconds after the sending, at 100 s."""
    made = Exchange(sent_s=100.0, status=status)
    for number, event in enumerate(events, start=1):
        data = event if isinstance(event, str) else json.dumps(event)
        made.pieces.append((100.0 + number, f"data: {data}\n\n".encode()))
    return made


def text(value: str, reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"text": value, "index": 0, "finish_reason": reason}]}


def test_the_times_of_one_answer() -> None:
    measured = answer((0.2, 0.3, 0.7))
    assert measured.ttft_s == 0.2
    assert measured.e2el_s == 0.7
    assert measured.tpot_s == pytest.approx((0.7 - 0.2) / 2)
    assert list(measured.itls_s) == pytest.approx([0.1, 0.4])


def test_tpot_divides_by_tokens_and_not_by_chunks() -> None:
    assert answer((0.2, 0.7), num_tokens=6).tpot_s == pytest.approx(0.5 / 5)


def test_one_token_has_no_tpot() -> None:
    assert answer((0.2,)).tpot_s is None


def test_usage_counts_tokens_where_the_server_sends_it() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}
    read = read_answer(exchange(text("a"), text("b"), text("", "length"), usage, "[DONE]"), 99)
    assert read.chunk_times_s == (1.0, 2.0)
    assert (read.num_input_tokens, read.num_output_tokens, read.is_counted_by_usage) == (4, 3, True)


def test_chunks_with_text_are_counted_where_no_usage_comes() -> None:
    read = read_answer(exchange(text("a"), text("b"), text("", "length")), 7)
    assert (read.num_input_tokens, read.num_output_tokens, read.is_counted_by_usage) == (7, 2, False)


def test_a_role_chunk_of_a_chat_is_no_token() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    read = read_answer(exchange(role, {"choices": [{"delta": {"content": "hi"}}]}), 7)
    assert read.chunk_times_s == (2.0,)


def test_an_answer_without_text_counts_from_its_first_chunk() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    assert read_answer(exchange(text("", "length"), usage), 1).chunk_times_s == (1.0,)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (exchange({"error": {"message": "lost"}}), "lost"),
        (exchange("no json"), "not JSON"),
        (exchange("[DONE]"), "no tokens"),
        (exchange({"error": {"message": "full"}}, status=429), "429"),
        (Exchange(sent_s=0.0, failure="ConnectionResetError"), "ConnectionResetError"),
    ],
)
def test_every_way_to_fail_is_a_failure_with_its_reason(made: Exchange, reason: str) -> None:
    assert reason in (read_answer(made, 1).failure or "")


def test_a_distribution_interpolates_its_percentiles() -> None:
    measured = Distribution.of_seconds(i / 1000 for i in range(101))
    assert measured.mean == pytest.approx(50.0)
    assert measured.median == pytest.approx(50.0)
    assert measured.percentiles[90] == pytest.approx(90.0)
    assert measured.percentiles[99] == pytest.approx(99.0)
    assert Distribution.of_seconds([0.1, 0.2]).percentiles[25] == pytest.approx(125.0)


def test_no_samples_give_zeros() -> None:
    assert Distribution.of_seconds([]).mean == 0.0


def test_a_run_is_summed_over_its_whole_duration() -> None:
    result = LoadResult([answer((0.2, 0.4)), answer((0.3, 0.5, 0.9)), failed()], 2.0, 0.5)
    summary = summarize(result, Goals())
    assert (summary.num_completed, summary.num_failed) == (2, 1)
    assert summary.failures == {"refused": 1}
    assert summary.request_throughput == 1.0
    assert summary.output_throughput == 2.5
    assert summary.total_token_throughput == 12.5
    assert summary.client_cpu_share == 0.25
    assert summary.request_goodput is None
    assert summary.ttft.mean == pytest.approx(250.0)
    assert summary.tpot.mean == pytest.approx((200 + 300) / 2)
    assert summary.itl.mean == pytest.approx((200 + 200 + 400) / 3)
    assert summary.e2el.mean == pytest.approx(650.0)


def test_goodput_counts_the_requests_that_meet_every_goal() -> None:
    result = LoadResult([answer((0.1, 0.2)), answer((0.1, 0.5)), answer((0.3, 0.4)), failed()], 2.0, 0.0)
    assert summarize(result, Goals.parse(["ttft:200", "tpot:150"])).request_goodput == 0.5
    assert summarize(result, Goals.parse(["ttft:200"])).request_goodput == 1.0
    assert summarize(result, Goals.parse(["e2el:1000"])).request_goodput == 1.5


@pytest.mark.parametrize("pair", ["ttft", "ttft:fast", "speed:3", "tpot:-1", "tpot:0"])
def test_a_goal_that_makes_no_sense_is_refused(pair: str) -> None:
    with pytest.raises(ValueError, match="is no goal"):
        Goals.parse([pair])


def test_peak_concurrency_counts_overlaps() -> None:
    one, two, three = answer((1.0,)), answer((1.0,), sent_s=0.5), answer((1.0,), sent_s=1.2)
    assert peak_concurrency([one, two, three]) == 2
    assert peak_concurrency([]) == 0


def test_the_report_has_the_terms_of_vllm() -> None:
    printed = format_summary(
        summarize(LoadResult([answer((0.2, 0.4)), failed()], 2.0, 0.5), Goals.parse(["ttft:300"]))
    )
    for term in (
        "Serving Benchmark Result",
        "Successful requests:                     1",
        "Failed requests:                         1",
        "Request goodput (req/s):                 0.50",
        "Output token throughput (tok/s):         1.00",
        "Mean TTFT (ms):                          200.00",
        "P99 TPOT (ms):",
        "Median ITL (ms):",
        "P90 E2EL (ms):",
        "failed 1 times: refused",
    ):
        assert term in printed
