"""The public face: what `import streamtask` offers, and what it costs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import streamtask
from streamtask import errors


def test_every_public_name_can_be_had_and_is_documented() -> None:
    for name in streamtask.__all__:
        found = getattr(streamtask, name)
        assert found.__doc__, f"{name} has no docstring"
        assert name in dir(streamtask)


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
INTERNAL = {"Settings.kafka_for"}


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
