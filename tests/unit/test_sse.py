"""How the client cuts a stream of Server-Sent Events: held to httpx-sse, and to what that does not decide."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given
from hypothesis import strategies as st

from streamtask.client.stream import ServerEvent, server_events
from streamtask.errors import StreamtaskError
from streamtask.projection.feed import Heard
from streamtask.query_service import sse
from streamtask.query_service.live import Push

CUTS = st.lists(st.integers(0, 10_000), max_size=12)
FIELDS = (
    *("data: a", "data:b", "data:  c", "data", "data: \u2028\x85\u00e9", "datax: z"),
    *("id: 0:1", "id: 0:2", "id: x\0y", "event: gap", "event:", "retry: 5", ": alive", "unknown: z"),
    *("", ""),
)


async def parts_of(text: bytes, cuts: Sequence[int]) -> AsyncIterator[bytes]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        yield text[start:end]


def ours(text: bytes, cuts: Sequence[int] = ()) -> list[ServerEvent]:
    async def read() -> list[ServerEvent]:
        return [event async for event in server_events(parts_of(text, cuts))]

    return asyncio.run(read())


def theirs(text: bytes, cuts: Sequence[int] = ()) -> list[tuple[str, str, str]]:
    """(id, name, data) of what httpx-sse dispatches with data: a page sees no other one."""

    async def read() -> list[tuple[str, str, str]]:
        answer = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=parts_of(text, cuts))
        return [(one.id, one.event, one.data) async for one in EventSource(answer).aiter_sse() if one.data]

    return asyncio.run(read())


def with_data(events: list[ServerEvent]) -> list[tuple[str, str, str]]:
    """The same of ours; an id counts until the next one."""
    found, last_id = [], ""
    for event in events:
        last_id = last_id if event.id is None else event.id
        if event.data:
            found.append((last_id, event.name, event.data.decode()))
    return found


@given(st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(["\n", "\r\n", "\r"])), max_size=40), CUTS)
def test_a_stream_says_to_the_client_what_it_says_to_httpx_sse(lines: list[tuple[str, str]], cuts: list[int]) -> None:
    text = "".join(line + end for line, end in lines).encode()
    assert with_data(ours(text, cuts)) == theirs(text, cuts)


def test_a_byte_order_mark_is_no_part_of_the_first_field() -> None:
    """httpx-sse takes it for the beginning of the field's name, and drops the line; the HTML standard skips it."""
    text = b"\xef\xbb\xbfdata: a\n\ndata: b\n\n"
    for cuts in ([], [1], [1, 2], [3, 4]):
        assert [event.data for event in ours(text, cuts)] == [b"a", b"b"]
    assert [data for _, _, data in theirs(text)] == ["b"]


def test_bytes_that_are_no_text_do_not_end_the_stream() -> None:
    assert ours(b"id: \xff\nevent: \xfe\ndata: \xfd\n\n") == [ServerEvent("\ufffd", "\ufffd", b"\xfd")]


@given(CUTS)
def test_a_stream_is_read_the_same_however_it_is_cut(cuts: list[int]) -> None:
    text = 'retry: 5\nid: 0:1\n\n: alive\n\nid: 0:2\nevent: gap\ndata: {\ndata:  "a": "\u2028\x85"}\n\ndata:x\n\ndata: never'
    assert ours(text.encode(), cuts) == [
        ServerEvent("0:1", "message", b""),
        ServerEvent(None, "message", b""),
        ServerEvent("0:2", "gap", '{\n "a": "\u2028\x85"}'.encode()),
        ServerEvent(None, "message", b"x"),
    ]


def test_a_stream_without_an_end_of_line_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtask.client.stream.BLOCK_BYTES_MAX", 10)
    with pytest.raises(StreamtaskError, match="larger than 10 bytes"):
        ours(b"data: 0123456789", [5, 6, 11])


def push(offset: int, body: bytes) -> Push:
    return Push(f"0:{offset}", Heard(0, offset, "", "running", None, "", body))


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda held: st.lists(held) | st.dictionaries(st.text(), held), max_leaves=8
)


@given(st.lists(JSON, min_size=1, max_size=5), st.sampled_from([None, 2]), st.sampled_from(["\n", "\r\n", "\r"]), CUTS)
def test_what_the_service_writes_is_read_alike_by_the_client_and_by_httpx_sse(
    documents: list[object], indent: int | None, end: str, cuts: list[int]
) -> None:
    """Also where others wrote their JSON over several lines."""
    bodies = [json.dumps(one, indent=indent, ensure_ascii=False).replace("\n", end).encode() for one in documents]
    text = b"".join(sse.block(push(number, body)) for number, body in enumerate(bodies))
    wanted = [(f"0:{number}", "message", document) for number, document in enumerate(documents)]
    for found in (with_data(ours(text, cuts)), theirs(text, cuts)):
        assert [(id, name, json.loads(data)) for id, name, data in found] == wanted
