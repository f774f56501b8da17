"""The event stream parser against the cases of the specification."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.clients.sse import SSEParser

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\n"
    b"data: one\r\n\r\n"
    b"event: message\nid: 7\nretry: 10\ndata:two\ndata: and more\n\n"
    b"data\rdata:  kept space\r\r"
    b"data: caf\xc3\xa9\n\r\n"
    b"data: never finished"
)
EVENTS = ["one", "two\nand more", "\n kept space", "café"]


def test_every_rule_of_the_format_holds_in_one_stream() -> None:
    assert SSEParser().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_where_the_bytes_are_split(cuts: list[int]) -> None:
    parser = SSEParser()
    ends = [0, *sorted(cuts), len(STREAM)]
    events = [event for a, b in pairwise(ends) for event in parser.feed(STREAM[a:b])]
    assert events == EVENTS


def test_events_do_not_depend_on_the_split_when_every_byte_comes_alone() -> None:
    parser = SSEParser()
    assert [event for byte in STREAM for event in parser.feed(bytes([byte]))] == EVENTS


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_delivered_with_its_last_byte(end: bytes) -> None:
    assert SSEParser().feed(b"data: x" + end + end) == ["x"]


def test_a_comment_is_no_event() -> None:
    assert SSEParser().feed(b": ping\n\n: ping\n\n") == []


def test_the_last_event_id_is_that_of_the_last_whole_event() -> None:
    parser = SSEParser()
    assert parser.last_event_id == ""
    parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert parser.last_event_id == "1"
    parser.feed(b"\n: ping\ndata: c\n\n")
    assert parser.last_event_id == "2"
    parser.feed(b"id: 3\x00\ndata: d\n\n")
    assert parser.last_event_id == "2"
