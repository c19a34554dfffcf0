"""The client's two ways from a request to its record: a plain dict is checked and written without a model, everything else
by the model and the strict reader. Whatever is given, both say the same."""

from __future__ import annotations

import enum
import json
import math
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from streamtask.client import build
from streamtask.client.build import Prepared, bulk, from_arguments, prepare, prepare_arguments
from streamtask.codec import request as codec_request
from streamtask.codec.formats import Encoder
from streamtask.config import TopicNames
from streamtask.domain.model import TaskRequest
from streamtask.errors import RequestRefused

NAMES = TopicNames("t")
ONE = "0193a5b0-0000-7000-8000-000000000001"
NOW = datetime(2026, 11, 24, 7, 26, 0, 123_456, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"
    NOT_A_NUMBER = math.nan


class Level(enum.IntEnum):
    HIGH = 9


class Pair(NamedTuple):
    a: int
    b: float


@dataclass
class Point:
    x: float


class Model(BaseModel):
    x: float = math.nan


class Text(str):
    """Somebody's own."""


def nested(levels: int) -> Any:
    held: Any = 1
    for _ in range(levels):
        held = [held]
    return held


VALUES = [
    *(1, -0.0, 1e16, 1e-7, True, None, "", 'é\u2028\x00"', "null", 2**63, 2**64, -(2**70), math.nan, math.inf),
    *("\ud800", b"bytes", b"\xff", Text("x"), Decimal("1.50"), uuid.UUID(ONE), NOW, date(2026, 1, 2), (1, 2), {1}),
    *(Colour.RED, Colour.NOT_A_NUMBER, Level.HIGH, Pair(1, math.nan), Point(math.nan), Point(1.5), Model(), Model(x=1)),
    *(
        object(),
        nested(100),
        nested(118),
        nested(119),
        nested(120),
        nested(300),
        {1: 2},
        {"a": {2: 3}},
        OrderedDict(a=1),
    ),
    *({"\ud800": 1}, [None, math.nan], {"NaN": "NaN"}, {"a": [{"b": None}]}),
]
FIELDS: dict[str, list[Any]] = {
    "task_type": ["x", "", "x" * 300, 7, None, Text("x"), Level.HIGH],
    "description": ["", "text", None, 1, "\ud800"],
    "parameters": [None, {}, [], {"n": 1}, {1: 2}, {b"k": 1}, OrderedDict(a=1), *({"v": held} for held in VALUES)],
    "priority": [None, 1, 5, 10, 0, 11, 5.0, 5.5, "5", True, Level.HIGH, 10**400],
    "timeout_seconds": [None, 1, 0.5, 0, -1, math.nan, math.inf, "1", True, 10**400, Decimal(1)],
    "task_id": [None, ONE, ONE.upper(), "nobody", "", 7, uuid.UUID(ONE)],
    "created_at": [None, NOW, NOW.replace(tzinfo=None), "2026-11-24T07:26:00.123Z", "1700000000", 1_700_000_000],
    "expires_at": [None, NOW, "2026-11-24T07:26:00+02:00", "tomorrow"],
    "not_before": [None, NOW],
    "ordering_key": [None, "k", "", "客户", 3],
    "tenant": [None, "acme", "", "x" * 300],
    "idempotency_key": [None, "once", 4],
    "labels": [None, {}, {"a": "b"}, {"a": 1}, {1: "a"}, {"a": "x" * 2_000}, []],
    "priorty": [1],
}
REQUESTS = st.fixed_dictionaries(
    {"task_type": st.sampled_from(["x", "x", "x", *FIELDS["task_type"]])},
    optional={name: st.sampled_from(held) for name, held in FIELDS.items() if name != "task_type"},
)


def said(make: Any) -> Any:
    """What became of a request: its record, or why there is none."""
    try:
        made: Prepared = make()
    except RequestRefused as refused:
        return str(refused), refused.fields
    document = json.loads(made.value)
    return made.band, made.key, list(document.items())


@pytest.fixture(autouse=True, scope="module")
def one_id() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "new_task_id", lambda: ONE)
        yield


def the_long_way(request: Any) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "_fields_of", lambda _given: None)
        patched.setattr(codec_request, "_may_be_deep", lambda _text: True)  # pydantic writes what orjson would have
        return said(lambda: prepare(request, NAMES))


@pytest.mark.parametrize("name", FIELDS)
def test_every_value_of_every_field_goes_both_ways_alike(name: str) -> None:
    for held in FIELDS[name]:
        request = {"task_type": "x", name: held}
        assert said(lambda request=request: prepare(request, NAMES)) == the_long_way(request), repr(held)


@given(REQUESTS)
def test_any_request_goes_both_ways_alike(request_: dict[str, Any]) -> None:
    assert said(lambda: prepare(request_, NAMES)) == the_long_way(request_)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        # Level.HIGH, an IntEnum: the quick check takes it, the model does not and leaves it to the strict reader.
        ({"priority": Level.HIGH, "parameters": {"v": math.nan}}, ["parameters"]),
        ({"priority": Level.HIGH, "parameters": {"v": Pair(1, math.nan)}}, ["parameters"]),
        ({"priority": Level.HIGH, "parameters": {"v": Model()}}, ["parameters"]),
        ({"priority": Level.HIGH, "parameters": {"v": {"\ud800": 1}}}, ["parameters"]),
        ({"priority": Level.HIGH, "description": "\ud800"}, ["description"]),
        ({"description": "\ud800", "parameters": {"v": math.nan}}, ["description", "parameters"]),
        ({"priority": 11, "parameters": {"v": math.nan}}, ["priority", "parameters"]),
        ({"timeout_seconds": math.nan, "tenant": "\ud800"}, ["timeout_seconds", "tenant"]),
        ({"priorty": math.nan, "parameters": {"v": math.nan}}, ["priorty", "parameters"]),
    ],
    ids=repr,
)
def test_a_value_that_no_json_can_hold_is_refused_in_the_same_words_on_both_ways_and_its_field_is_named(
    request_: dict[str, Any], fields: list[str]
) -> None:
    request = {"task_type": "x", **request_}
    refusal = said(lambda: prepare(request, NAMES))
    assert refusal == the_long_way(request)
    assert sorted(refusal[1]) == sorted(fields)


@given(REQUESTS)
def test_arguments_make_what_their_model_makes(fields: dict[str, Any]) -> None:
    fields.pop("priorty", None)
    parameters = fields.pop("parameters", None)
    by_arguments = said(lambda: prepare_arguments(parameters, NAMES, None, Encoder(), **fields))
    assert by_arguments == said(lambda: prepare(from_arguments(parameters, **fields), NAMES))


def test_the_bulk_path_sends_what_a_submit_sends_in_the_order_of_the_requests() -> None:
    requests = [{"task_type": "x", "parameters": {"n": n}, "priority": n % 10 + 1} for n in range(20)]
    requests += [TaskRequest(task_type="y", ordering_key="k")]  # type: ignore[list-item]
    made = [prepare(request, NAMES) for request in requests]
    assert list(bulk(requests, NAMES, Encoder())) == [(one.band, (one.key, one.value, None)) for one in made]


def test_what_the_caller_gave_is_not_changed() -> None:
    request = {
        "task_type": "x",
        "parameters": {"n": [None]},
        "description": "",
        "created_at": NOW,
        "labels": {"a": "b"},
    }
    before = {**request, "parameters": {"n": [None]}}
    prepare(request, NAMES)
    assert request == before
