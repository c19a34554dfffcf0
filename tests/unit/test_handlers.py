"""Handlers: arguments by annotation, refusals that name the field, and what a context tells."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import uuid
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from streamtask.app import App
from streamtask.domain.model import HandlerKind, TaskRequest
from streamtask.errors import ConfigError, GiveUp, RequestRefused, RetryLater
from streamtask.handlers.arguments import ParametersInvalid
from streamtask.handlers.options import Retry
from streamtask.handlers.registry import Context, Handler, Registry, make_handler


class Census(BaseModel):
    path: Path
    depth: int = Field(default=3, ge=1)


@dataclasses.dataclass
class Move:
    source: str
    target: str = "here"


class Query(TypedDict, total=False):
    text: str
    limit: int


class StrictDay(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Aliased(BaseModel):
    size: int = Field(alias="Size")


def call(function: Callable[..., Any], parameters: dict[str, Any] | None) -> Any:
    handler = make_handler(function)
    args, kwargs = handler.arguments(parameters)
    if handler.takes_context:
        args = (Context.fake(parameters), *args)
    return handler.function(*args, **kwargs)


def refusal(function: Callable[..., Any], parameters: dict[str, Any] | None) -> dict[str, str]:
    with pytest.raises(ParametersInvalid) as caught:
        make_handler(function).arguments(parameters)
    assert str(caught.value)
    return caught.value.fields


def test_a_pydantic_model_takes_the_parameters_as_a_whole() -> None:
    def census(ctx: Context, params: Census) -> Census:
        return params

    assert call(census, {"path": "/x"}) == Census(path=Path("/x"), depth=3)


def test_a_dataclass_takes_the_parameters_as_a_whole() -> None:
    def move(params: Move) -> Move:
        return params

    assert call(move, {"source": "a"}) == Move("a", "here")


def test_a_typeddict_takes_the_parameters_as_a_whole() -> None:
    def query(params: Query) -> Query:
        return params

    assert call(query, {"limit": 3}) == {"limit": 3}


def test_plain_arguments_are_fields_and_keep_their_own_defaults() -> None:
    def plain(ctx: Context, path: Path, *, limit: int = 10, tags: tuple[str, ...] = ("a",)) -> Any:
        return path, limit, tags

    assert call(plain, {"path": "x", "tags": ["b", "c"]}) == (Path("x"), 10, ("b", "c"))


def test_names_that_models_reserve_are_ordinary_argument_names() -> None:
    def plain(copy: int, model_fields: int, _hidden: int, self: int) -> Any:
        return copy, model_fields, _hidden, self

    assert call(plain, {"copy": 1, "model_fields": 2, "_hidden": 3, "self": 4}) == (1, 2, 3, 4)


def test_arguments_without_annotations_take_any_json() -> None:
    def plain(ctx, a, b=None):  # type: ignore[no-untyped-def]
        return a, b

    assert call(plain, {"a": [1, {"x": None}]}) == ([1, {"x": None}], None)


def test_a_mapping_called_params_takes_any_names() -> None:
    def anything(params: dict[str, Any]) -> Any:
        return params

    assert call(anything, {"a": 1, "b": 2}) == {"a": 1, "b": 2}


def test_a_handler_without_arguments_takes_null_and_an_empty_object_only() -> None:
    def nothing() -> int:
        return 1

    assert call(nothing, None) == 1
    assert call(nothing, {}) == 1
    assert refusal(nothing, {"x": 1}) == {"x": "unknown parameter"}


def test_null_parameters_use_the_default_of_the_whole_argument() -> None:
    def optional(params: Census | None = None) -> Any:
        return params

    assert call(optional, None) is None
    assert call(optional, {"path": "x"}) == Census(path=Path("x"))


def test_an_unknown_parameter_is_refused_naming_the_nearest() -> None:
    def plain(path: str, limit: int = 1) -> None: ...
    def whole(params: Census) -> None: ...
    def move(params: Move) -> None: ...
    def query(params: Query) -> None: ...

    assert refusal(plain, {"path": "x", "limmit": 1}) == {"limmit": "unknown parameter; did you mean 'limit'?"}
    assert refusal(whole, {"path": "x", "dept": 1}) == {"dept": "unknown parameter; did you mean 'depth'?"}
    assert refusal(move, {"sorce": "x"}) == {"sorce": "unknown parameter; did you mean 'source'?"}
    assert refusal(query, {"texts": "x"}) == {"texts": "unknown parameter; did you mean 'text'?"}


def test_a_model_may_wish_for_unknown_names_itself() -> None:
    def whole(params: Open) -> Any:
        return params.model_extra

    assert call(whole, {"a": 1, "b": 2}) == {"b": 2}


def test_aliases_are_known_names() -> None:
    def whole(params: Aliased) -> Any:
        return params.size

    assert call(whole, {"Size": 2}) == 2


def test_each_wrong_field_is_named_with_what_is_wrong() -> None:
    def plain(a: int, b: Literal["x", "y"], c: list[int]) -> None: ...

    fields = refusal(plain, {"a": "seven", "b": "z", "c": [1, "two"]})
    assert set(fields) == {"a", "b", "c.1"}
    assert "integer" in fields["a"]
    assert refusal(plain, None).keys() == {"a", "b", "c"}


def test_a_thousand_wrong_items_are_told_in_twenty() -> None:
    def plain(items: list[int]) -> None: ...

    fields = refusal(plain, {"items": ["x"] * 1_000})
    assert len(fields) == 21
    assert fields["..."] == "and 980 more"


def test_a_strict_model_reads_dates_as_json_does() -> None:
    def whole(params: StrictDay) -> date:
        return params.day

    assert call(whole, {"day": "2026-11-24"}) == date(2026, 11, 24)
    assert "day" in refusal(whole, {"day": 5.5})


def test_constraints_of_annotated_arguments_hold() -> None:
    def plain(n: Annotated[int, Field(ge=1)] = 1, key: uuid.UUID | None = None) -> Any:
        return n, key

    assert "n" in refusal(plain, {"n": 0})
    assert call(plain, {"key": "6f1d5c1e-6d0e-5b8a-9a51-73747265616d"})[1] == uuid.UUID(
        "6f1d5c1e-6d0e-5b8a-9a51-73747265616d"
    )


def test_a_handler_that_retries_may_change_its_parameters_without_the_next_attempt_seeing_it() -> None:
    def greedy(items: list[Any], params: dict[str, Any]) -> None: ...

    parameters: dict[str, Any] = {"items": [[1]], "params": {"deep": [1]}}
    handler = make_handler(greedy, retry=Retry(attempts=2))
    _, kwargs = handler.arguments(parameters)
    kwargs["items"][0].append(2)
    kwargs["params"]["deep"].append(2)
    assert parameters == {"items": [[1]], "params": {"deep": [1]}}


def test_parameters_nested_deeper_than_any_parser_goes_end_as_a_refusal_or_a_value() -> None:
    def plain(a: Any) -> None: ...

    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    make_handler(plain, retry=Retry()).arguments({"a": deep})

    def typed(a: int) -> None: ...

    assert "a" in refusal(typed, {"a": deep})


@pytest.mark.parametrize("function", [lambda *args: None, lambda **kwargs: None])
def test_arguments_that_name_nothing_are_refused_at_registration(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"functools\.wraps"):
        make_handler(function, name="x")


def test_shapes_that_cannot_work_are_refused_at_registration() -> None:
    def late(path: str, ctx: Context) -> None: ...
    def named(*, ctx: Context) -> None: ...
    def positional(path: str, /) -> None: ...
    def field(path: str = Field("x")) -> None: ...
    def unknowable(path: asyncio.Lock) -> None: ...
    def generator() -> Any:
        yield 1

    async def async_generator() -> Any:
        yield 1

    async def coroutine() -> None: ...
    @functools.wraps(coroutine)
    def wrapped() -> Any:
        return coroutine()

    for function, text in [
        (late, "must be the first"),
        (lambda path, ctx: None, "must be the first"),
        (named, "before the '\\*'"),
        (positional, "positional-only"),
        (field, "Annotated"),
        (unknowable, "'unknowable': its arguments cannot be read from JSON"),
        (generator, "generator"),
        (async_generator, "generator"),
        (wrapped, "Make its wrapper async"),
        ("no function", "not a function"),
    ]:
        with pytest.raises(ConfigError, match=text):
            make_handler(function, name=getattr(function, "__name__", "x"))  # type: ignore[arg-type]


def test_a_method_is_refused_where_it_is_defined_and_taken_from_an_object() -> None:
    with pytest.raises(ConfigError, match=r"is a method of .*Shop, and 'self' would be one of its parameters"):

        class Shop:
            @App("shop").task
            def charge(self, amount: int) -> int:
                return amount

    class Till:
        def charge(self, amount: int) -> int:
            return amount

    def selfish(self: int) -> int:
        return self

    assert make_handler(Till().charge).binding.bind({"amount": 1}) == ((), {"amount": 1})
    assert make_handler(selfish).name == "selfish"


def test_an_annotation_that_cannot_be_found_is_named() -> None:
    def lost(params: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigError, match=r"Nowhere.*TYPE_CHECKING"):
        make_handler(lost)


def test_limits_that_cannot_work_are_refused_at_registration() -> None:
    def f() -> None: ...
    async def g() -> None: ...

    wrong: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "x" * 256},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": True},
        {"timeout": 10, "timeout_max": 5},
        {"timeout_max": -1},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"lost_max": -1},
        {"retry": 3},
        {"executor": "async"},
        {"executor": "fiber"},
    ]
    for arguments in wrong:
        with pytest.raises(ConfigError):
            make_handler(f, **arguments)
    with pytest.raises(ConfigError, match="async def"):
        make_handler(g, executor="thread")
    assert make_handler(f, executor="process").kind is make_handler(g, executor="process").kind is HandlerKind.PROCESS
    refused: list[dict[str, Any]] = [
        {"attempts": 0},
        {"attempts": 1.0},
        {"backoff": -1},
        {"retry_on": ValueError},
        {"give_up_on": (1,)},
    ]
    for arguments in refused:
        with pytest.raises(ConfigError):
            Retry(**arguments)


def test_the_policy_is_in_milliseconds() -> None:
    async def f() -> None: ...

    handler = make_handler(
        f, timeout=0.0001, timeout_max=60, retry=Retry(3, 0.5, 10), concurrency=4, lost_max=0, executor="async"
    )
    policy = handler.policy()
    assert (policy.kind, policy.timeout_ms, policy.timeout_max_ms) == (HandlerKind.ASYNC, 1, 60_000)
    assert (policy.retry.attempts, policy.retry.backoff_ms, policy.retry.backoff_max_ms) == (3, 500, 10_000)
    assert (policy.concurrency, policy.lost_max) == (4, 0)
    assert make_handler(lambda: None, name="once").policy().retry.attempts == 1


def test_a_handler_says_its_kind_and_its_limits() -> None:
    def resize(path: str) -> None: ...
    async def greet() -> None: ...

    limited = make_handler(resize, timeout=30, retry=Retry(attempts=3), concurrency=2)
    assert str(limited) == "resize (thread, timeout 30 s, 3 attempts, 2 at once)"
    assert str(make_handler(greet)) == "greet (async)"


def test_a_callable_object_and_a_partial_are_handlers() -> None:
    class Adder:
        async def __call__(self, a: int, b: int = 1) -> int:
            return a + b

    def add(base: int, a: int) -> int:
        return base + a

    adder = make_handler(Adder(), name="adder")
    assert adder.kind is HandlerKind.ASYNC
    assert adder.arguments({"a": 1}) == ((), {"a": 1})
    partial = make_handler(functools.partial(add, 10), name="partial")
    assert partial.function(**partial.arguments({"a": 1})[1]) == 11


def test_a_task_type_registered_twice_is_refused_naming_both_places() -> None:
    registry = Registry()
    registry.add(make_handler(lambda: 1, name="same"))
    with pytest.raises(ConfigError, match=r"test_handlers.py:\d+ and .*test_handlers.py:\d+"):
        registry.add(make_handler(lambda: 2, name="same"))
    assert list(registry.policies()) == ["same"]


def test_what_a_handler_raises_decides_about_its_retry() -> None:
    default, picky = Retry(), Retry(retry_on=(ConnectionError,), give_up_on=(ConnectionRefusedError,))
    assert default.decide(ValueError()) == (True, None)
    assert default.decide(SystemExit(1)) == (True, None)
    assert default.decide(GiveUp("no")) == (False, None)
    assert default.decide(RetryLater(after=1.5)) == (True, 1_500)
    assert default.decide(RetryLater(after=-1)) == (True, 0)
    assert default.decide(RetryLater(after=float("inf"))) == (True, None)
    assert picky.decide(ValueError()) == (False, None)
    assert picky.decide(ConnectionResetError()) == (True, None)
    assert picky.decide(ConnectionRefusedError()) == (False, None)
    assert picky.decide(RetryLater(after=0)) == (True, 0)


def test_an_exception_group_counts_as_each_of_its_leaves() -> None:
    assert Retry().decide(ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [GiveUp("no")])])) == (False, None)
    assert Retry().decide(ExceptionGroup("g", [RetryLater(after=2)])) == (True, 2_000)
    assert Retry(retry_on=(KeyError,)).decide(ExceptionGroup("g", [KeyError()])) == (True, None)
    assert Retry(retry_on=(KeyError,)).decide(ExceptionGroup("g", [ValueError()])) == (False, None)


def handler_of(function: Callable[..., Any]) -> Handler:
    return make_handler(function)


def test_what_is_packed_for_sending_is_what_the_handler_gets() -> None:
    def whole(ctx: Context, params: Census) -> None: ...
    def plain(path: Path, limit: int = 3, *, key: uuid.UUID | None = None) -> None: ...
    def nothing(ctx: Context) -> None: ...
    def move(params: Move) -> None: ...

    assert handler_of(whole).binding.pack((Census(path=Path("x")),), {}) == {"path": "x", "depth": 3}
    assert handler_of(whole).binding.pack((), {"params": Census(path=Path("x"))}) == {"path": "x", "depth": 3}
    assert handler_of(move).binding.pack((Move("a"),), {}) == {"source": "a", "target": "here"}
    assert handler_of(plain).binding.pack((Path("x"),), {}) == {"path": "x"}
    assert handler_of(nothing).binding.pack((), {}) is None
    key = uuid.UUID("6f1d5c1e-6d0e-5b8a-9a51-73747265616d")
    packed = handler_of(plain).binding.pack((Path("x"), 5), {"key": key})
    assert packed == {"path": "x", "limit": 5, "key": str(key)}
    assert handler_of(plain).arguments(packed) == ((), {"path": Path("x"), "limit": 5, "key": key})


def test_an_option_that_no_handler_has_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'timeot'\. Did you mean 'timeout'"):
        make_handler(lambda: None, name="x", timeot=3)  # type: ignore[call-arg]


def test_arguments_that_the_worker_would_refuse_are_refused_before_sending() -> None:
    def plain(n: Annotated[int, Field(ge=1)], text: str = "") -> None: ...

    pack = handler_of(plain).binding.pack
    with pytest.raises(RequestRefused) as caught:
        pack((0,), {})
    assert caught.value.fields.keys() == {"n"}
    with pytest.raises(RequestRefused):
        pack((1,), {"text": object()})
    with pytest.raises(TypeError, match="limits"):
        pack((1,), {"limits": 1})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"amount": "abc"}, "charge: amount: Input should be a valid integer"),
        ({"amount": 1.5}, "charge: amount: Input should be a valid integer"),
        ({"amount": [1]}, "charge: amount: Input should be a valid integer"),
        ({"amount": 1, "name": 7}, "charge: name: Input should be a valid string"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_must_be(given: dict[str, Any], said: str) -> None:
    """Bug: the answer was two lines about a PydanticSerializationUnexpectedValue."""

    def charge(amount: int, name: str = "") -> None: ...

    with pytest.raises(RequestRefused) as refused:
        make_handler(charge).binding.pack((), given)
    assert str(refused.value) == said
    assert set(refused.value.fields) == {list(given)[-1]}


def test_a_result_is_read_as_the_return_annotation() -> None:
    def f() -> Move: ...  # type: ignore[empty-body]
    def g() -> StrictDay: ...  # type: ignore[empty-body]
    def h(): ...  # type: ignore[no-untyped-def]

    assert handler_of(f).binding.read_result({"source": "a", "target": "b"}) == Move("a", "b")
    assert handler_of(g).binding.read_result({"day": "2026-11-24"}).day == date(2026, 11, 24)
    assert handler_of(h).binding.read_result({"x": 1}) == {"x": 1}
    assert handler_of(f).result_type is Move


def test_a_fake_context_tells_what_a_real_one_does_and_keeps_the_reports() -> None:
    ctx = Context.fake(
        request=TaskRequest(task_type="x", idempotency_key="k", priority=8),
        attempt=2,
        timeout=10,
        headers={"traceparent": b"00"},
        state={"pool": 1},
    )
    assert (ctx.attempt, ctx.priority, ctx.idempotency_key, ctx.state) == (2, 8, "k", {"pool": 1})
    assert ctx.headers == {"traceparent": b"00"}
    assert ctx.origin == "normal-0@0"
    assert uuid.UUID(ctx.task_id).version == 7
    assert ctx.deadline is not None
    assert 9 < (ctx.seconds_left or 0) <= 10
    ctx.progress(0.5)
    ctx.progress(7, "x" * 2_000)
    ctx.progress(-1, "caf\udce9")
    assert ctx.reports[0] == (0.5, None)
    assert ctx.reports[1][0] == 1.0
    assert len(ctx.reports[1][1] or "") == 1_000
    assert ctx.reports[2] == (0.0, "caf\\udce9")
    for wrong in (float("nan"), "half", None, True):
        with pytest.raises(ValueError, match="finite number"):
            ctx.progress(wrong)  # type: ignore[arg-type]
    assert ctx.log is ctx.log
    assert not ctx.cancelled
    ctx.check_cancelled()
    ctx.cancel()
    assert ctx.cancelled
    with pytest.raises(asyncio.CancelledError):
        ctx.check_cancelled()
