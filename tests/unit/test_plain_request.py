"""The plain way to read a request gives what orjson and pydantic give, or leaves the record to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamtask.codec import RequestDecoder, request
from streamtask.codec.plain_request import SHORT_BYTES_MAX, plain_request
from streamtask.config import TopicNames
from streamtask.domain.model import RequestRecord, TaskRequest

DECODER = RequestDecoder(TopicNames(), "cluster-1")
ID = "0192f0c1-2b3c-7d4e-8f50-112233445566"
KEY = b"11111111-2222-4333-8444-555555555555"

NUMBERS = st.one_of(
    st.integers(-(10**25), 10**25),
    st.integers(-1, 12),
    st.floats(),
    st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**308, 10**309, 5.0, -0.0, 1e-320]),
)
TEXTS = st.one_of(
    st.text(max_size=6), st.sampled_from(["", "größe", "日本", "\ud800", "a\x00b", "x" * 256, ID, ID.upper()])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


GOOD: dict[str, st.SearchStrategy[Any]] = {
    "task_type": st.just("noop"),
    "parameters": st.dictionaries(TEXTS, VALUES, max_size=4),
    "priority": st.integers(1, 10),
    "task_id": st.just(ID),
    "description": TEXTS,
    "timeout_seconds": st.one_of(st.integers(1, 2**70), st.floats(1e-9, 1e300)),
    "ordering_key": TEXTS,
    "tenant": TEXTS,
    "idempotency_key": TEXTS,
    "labels": st.dictionaries(TEXTS, TEXTS, max_size=3),
    "created_at": st.just("2026-11-24T07:26:00.123Z"),
    "not_before": st.just("2026-11-24T07:26:00+01:00"),
    "of_another_release": VALUES,
}
PLAIN = list(GOOD)[:-3]


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A request as text: its fields in any order, with white space and escapes. Half of them are out of the ordinary: fields
    twice, wrong, unknown or missing, and rubbish around the object."""
    odd, ascii_only = draw(st.booleans()), draw(st.booleans())
    space = draw(st.sampled_from(["", "", " ", "\n\t"]))
    more = st.lists(st.sampled_from(list(GOOD)), max_size=6) if odd else st.sets(st.sampled_from(PLAIN), max_size=6)
    names = [*(["task_type"] if not odd or draw(st.integers(0, 9)) else []), *draw(more)]
    fields = []
    for name in draw(st.permutations(names)):
        value = draw(VALUES if odd and not draw(st.integers(0, 4)) else GOOD[name])
        fields.append(json.dumps(name) + space + ":" + space + json.dumps(value, ensure_ascii=ascii_only))
    around = st.sampled_from([b"", b"", b"", b" ", b"\xef\xbb\xbf", b"\x00", b"}", b"\xff"]) if odd else st.just(b"")
    text = "{" + ",".join(fields) + space + "}"
    return draw(around) + text.encode("utf-8", "surrogatepass") + draw(around)


def read(value: bytes, *, plain: bool, key: bytes | None = KEY) -> RequestRecord:
    with pytest.MonkeyPatch.context() as patched:
        if not plain:
            patched.setattr(request, "plain_request", lambda _text: None)
        return DECODER.decode(1, 3, 12_345, 1_795_505_160_123, key, value, None)


def parts(record: RequestRecord) -> str:
    """Everything that differs between two requests: 1 and 1.0 and True are equal, but are written differently."""
    found = record.request
    if found is None:
        return repr(record)
    state = found.__getstate__()
    return repr(
        (record, state["__dict__"], sorted(state["__pydantic_fields_set__"]), {**state, "__pydantic_fields_set__": 0})
    )


@given(documents())
@example(b'{"task_type":"a","parameters":{"x":1' + b"0" * 309 + b"}}")
@example(b'{"task_type":"a","parameters":{"x":' + b"9" * 5_000 + b"}}")
@example(b'{"task_type":"a","parameters":{"x":' + b"[" * 199 + b"]" * 199 + b"}}")
@example(b'{"task_type":"a","parameters":{"x":' + b"[" * 99_000 + b"]" * 99_000 + b"}}")
@example(b'{"task_type":"a","parameters":{"x":1e400}}')
@example(b'{"task_type":"a","parameters":{"x":-0, "y":-0.0}}')
@example(b'{"task_type":"a","parameters":{"x":1,"x":2.0}}')
@example(b'{"task_type":"a","parameters":{"\\ud800":1}}')
@example(b'{"task_type":"a","parameters":{"\\ud83d\\ude00":"\\udc00\\ud800"}}')
@example(b'{"task_type":"a","parameters":{"x":"\xed\xa0\x80"}}')
@example(b'{"task_type":"a","parameters":{"x":"\xc0\xaf"}}')
@example(b'{"task_type":"a","description":null}')
@example(b'{"task_type":"a","priority":"x","priority":5,"labels":null}')
@example(b'{"task_type":"a","timeout_seconds":18446744073709551617}')
@example(b'{"task_type":"a","timeout_seconds":true}')
@example(b'{"task_type":"a","task_id":"x"}')
@example(b'{"t\\u0061sk_type":"a"}')
@example(b"")
def test_whatever_the_bytes_both_ways_say_the_same(value: bytes) -> None:
    assert parts(read(value, plain=True)) == parts(read(value, plain=False))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_request_are_refused_in_the_same_words(value: bytes) -> None:
    assert parts(read(value, plain=True)) == parts(read(value, plain=False))


@pytest.mark.parametrize("length", range(SHORT_BYTES_MAX - 60, SHORT_BYTES_MAX + 60))
@pytest.mark.parametrize("filling", ["9", "[", '{"a":'])
def test_what_msgspec_alone_accepts_is_too_long_to_be_read_by_it_alone(filling: str, length: int) -> None:
    head, tail = b'{"task_type":"a","parameters":{"x":', b"}}"
    count = (length - len(head) - len(tail)) // (1 if filling == "9" else len(filling) + 1)
    closing = {"9": "", "[": "]" * count, '{"a":': "1" + "}" * count}[filling]
    value = head + (filling * count + closing).encode() + tail
    assert parts(read(value, plain=True)) == parts(read(value, plain=False))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"parameters": {"path": "lib", "size": 2**70, "deep": True}, "priority": 5, "task_id": ID},
        {"parameters": None, "labels": {"größe": "日本"}, "tenant": "a", "ordering_key": "k", "idempotency_key": "i"},
        {"parameters": {"text": "x" * 20_000, "rows": [{"a": None}] * 40}, "description": "d", "timeout_seconds": 5},
    ],
)
def test_an_ordinary_request_is_read_the_plain_way(more: dict[str, Any]) -> None:
    found = plain_request(json.dumps({"task_type": "noop", **more}).encode())
    assert found == TaskRequest(task_type="noop", **more)
    assert found.model_fields_set == {"task_type", *more}
    assert TaskRequest.model_validate_json(found.to_json()) == found
    assert found.model_copy(update={"priority": 3}).priority == 3


def test_a_request_that_waited_as_text_is_read_again_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "_validated", None)
    text = json.dumps({"task_type": "noop", "parameters": {"a": "x" * 2_000}}).encode()
    assert request.reopened(text).parameters == {"a": "x" * 2_000}
