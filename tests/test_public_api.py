"""The public face: what `import streamtask` offers, and what it costs."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import streamtask
from streamtask import errors, testing

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "api.md"


def test_every_public_name_can_be_had_and_is_documented() -> None:
    for name in streamtask.__all__:
        found = getattr(streamtask, name)
        assert found.__doc__, f"{name} has no docstring"
        assert name in dir(streamtask)


def test_every_testing_tool_can_be_had_and_is_in_the_reference() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", REFERENCE.read_text().partition("## Testing tools")[2], re.M)
    assert sorted(rows) == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__, f"{name} has no docstring"


def test_the_names_and_their_homes_are_the_same_set() -> None:
    assert sorted(streamtask.__all__) == sorted(streamtask._HOME_OF)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(streamtask, "Worker")


def test_importing_streamtask_and_its_core_never_drags_kafka_in() -> None:
    code = (
        "import sys, streamtask, streamtask.core.engine, streamtask.core.protocol, streamtask.app;"
        "print([name for name in sys.modules if name.startswith(('confluent_kafka', 'fastapi', 'granian'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_error_that_a_user_may_have_to_catch_is_public() -> None:
    raised = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.StreamtaskError)
    }
    inside = {"SchemaPending", "DevBrokerUnavailable"}  # the worker waits it out; the command of the local broker
    assert raised - inside <= set(streamtask.__all__)


# --- Each name says `streamtask` ---------------------------------------------------------------------------------------

PUBLIC: list[type] = [getattr(streamtask, name) for name in streamtask.__all__]
MODELS: list[type[BaseModel]] = [kind for kind in PUBLIC if issubclass(kind, BaseModel)]
TASK_ID = "0193a5b0-0000-7000-8000-000000000001"
DETAILS = streamtask.ErrorDetails(code="handler_error", exception="ValueError")
VALUES: list[Any] = [
    streamtask.TaskRequest(task_type="census", parameters={"path": "x"}, priority=8, task_id=TASK_ID),
    streamtask.TaskResponse(task_id=TASK_ID, status=streamtask.TaskStatus.FAILED, error_details=DETAILS),
    DETAILS,
    streamtask.TaskStatus.RUNNING,
    streamtask.Settings(prefix="shop", bootstrap_servers="b:1"),
    streamtask.TopicNames("shop"),
    streamtask.Retry(attempts=3, retry_on=(TimeoutError,)),
]


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_a_public_class_is_known_by_the_name_that_users_import(kind: type) -> None:
    assert f"{kind.__module__}.{kind.__qualname__}" == f"streamtask.{kind.__name__}"
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert kind.__name__ in repr(kind)


def test_a_traceback_names_an_error_as_users_catch_it() -> None:
    code = "from streamtask.config import load_settings; load_settings(prefix='/')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}.topics"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1].startswith("streamtask.ConfigError: prefix='/'")


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_the_annotations_of_a_public_class_can_be_resolved(kind: type) -> None:
    """Its module's names are not those of `streamtask`; so nothing may be left as text."""
    assert not [text for text in inspect.get_annotations(kind).values() if isinstance(text, str)]
    assert typing.get_type_hints(kind).keys() >= inspect.get_annotations(kind).keys()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_survives_pickle_and_copy(value: Any) -> None:
    assert type(value).__name__.encode() in pickle.dumps(value)
    for made in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert (made, type(made)) == (value, type(value))


ERRORS: list[Exception] = [
    streamtask.TaskFailed("no", task_id=TASK_ID, code="handler_error", details={"a": 1}),
    streamtask.TaskCancelled("no", task_id=TASK_ID, code="cancelled"),
    streamtask.DecodeError("no", code="too_deep", fields={"a": "b"}, task_id=TASK_ID),
    streamtask.RequestRefused("no", fields={"a": "b"}),
    streamtask.SubmitError("no", task_ids=(TASK_ID,)),
    streamtask.RetryLater(after=3.0),
    streamtask.GiveUp("no"),
    streamtask.SchemaUnavailable("no"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickle_and_copy_with_what_it_carries(error: Exception) -> None:
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(made), str(made), vars(made)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_model_can_be_built_anew_and_extended(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    assert model.model_rebuild(force=True) is True
    assert model.model_json_schema() == schema

    class Extended(model):  # type: ignore[valid-type,misc]
        mine: Census | None = None

    assert {*Extended.model_fields} == {*model.model_fields, "mine"}
    for name, field in model.model_fields.items():
        assert Extended.model_fields[name].annotation == field.annotation
    assert Extended.__module__ == __name__
    Extended.model_rebuild(force=True)
    Extended.model_json_schema()


def test_a_dataclass_a_typed_dict_and_an_error_can_be_extended() -> None:
    @dataclass(frozen=True)
    class MyNames(streamtask.TopicNames):
        more: str = "x"

    class MyOptions(streamtask.SubmitOptions, total=False):
        urgent: bool

    class MyError(streamtask.GiveUp):
        pass

    assert MyNames("shop", more="y").requests[0] == "shop.requests.high"
    assert {field.name for field in fields(MyNames)} == {"prefix", "bands", "more"}
    assert typing.get_type_hints(MyOptions).keys() == typing.get_type_hints(streamtask.SubmitOptions).keys() | {
        "urgent"
    }
    assert issubclass(MyError, streamtask.GiveUp)
    assert MyError.__module__ == __name__


@dataclass
class Census:
    """What a user's own model refers to."""

    path: str


# --- What it returns --------------------------------------------------------------------------------------------------


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods of public classes, and their overloads."""
    for name in streamtask.__all__:
        found = getattr(streamtask, name)
        for attribute, member in vars(found).items() if inspect.isclass(found) else ():
            if attribute.startswith("_"):
                continue
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            for one in (function, *(typing.get_overloads(function) if inspect.isfunction(function) else ())):
                if inspect.isfunction(one):
                    yield f"{name}.{attribute}", one


# Called by our own modules; the reference does not show it.
INTERNAL = {"Settings.kafka_for", "Receipt.followed"}


def test_whatever_a_public_function_returns_is_public() -> None:
    missing = set()
    for where, function in public_functions():
        if where in INTERNAL:
            continue
        for word in re.findall(r"[A-Z]\w+", str(function.__annotations__.get("return", ""))):
            returned = function.__globals__.get(word)
            ours = inspect.isclass(returned) and returned.__module__.startswith("streamtask")
            if ours and word not in streamtask.__all__:
                missing.add(f"{where} returns {word}")
    assert sorted(missing) == []
