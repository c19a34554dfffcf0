"""The HTTP doors under fire: requests made from the OpenAPI document, right ones and wrong ones, against the real service
on a real Kafka. Whatever comes, the answer is one that the document names, and afterwards the service does its work."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from streamtask.cli.export import openapi
from tests.acceptance.harness import WAIT_S, Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.hypothesis]


# The same requests in every run, but for `make fuzz`.
def fixed(test: Callable[[], None]) -> Callable[[], None]:
    assert settings.default is not None
    return seed(1)(test) if settings.default.derandomize else test


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
STREAMS = ("/events", "/tasks/{task_id}/events")  # a right request is answered for as long as somebody listens
TOO_LONG = {414, 431}  # an address that the HTTP server itself does not take: no route sees it


def the_service(bench: Bench) -> str:
    service = bench._start([sys.executable, "-m", "streamtask", "serve", "--port", "0"], {})
    ready = until(lambda: [line for line in service.text().splitlines() if line.startswith("ready: ")], service.text)
    return ready[0].split()[1]


def tame(case: Any, known: Sequence[str], turn: int) -> None:
    """Every other time a task that exists; and no minute's wait."""
    if "task_id" in (case.path_parameters or {}) and turn % 2:
        case.path_parameters["task_id"] = known[turn % len(known)]
    if isinstance((case.query or {}).get("wait"), int | float):
        case.query["wait"] = min(case.query["wait"], 0.01)


def check(case: Any, url: str, session: requests.Session) -> int:
    if case.path in STREAMS:
        with session.request(**case.as_transport_kwargs(base_url=url), stream=True, timeout=WAIT_S) as stream:
            named = {int(status) for status in case.operation.definition.raw["responses"]}
            assert stream.status_code in named | TOO_LONG
            return stream.status_code
    answer = case.call(base_url=url, session=session, timeout=WAIT_S, allow_redirects=False)
    if answer.status_code not in TOO_LONG:
        case.validate_response(answer, checks=CHECKS)
    return int(answer.status_code)


@pytest.mark.parametrize(
    "mode",
    [pytest.param(GenerationMode.POSITIVE, marks=pytest.mark.slow), GenerationMode.NEGATIVE],
    ids=lambda mode: mode.value,
)
def test_whatever_is_asked_the_answer_is_one_of_the_document(bench: Bench, mode: GenerationMode) -> None:
    url = the_service(bench)
    sent = [httpx.post(f"{url}/tasks", json={"task_type": "noop"}, timeout=WAIT_S).json() for _ in range(4)]
    answers: Counter[tuple[str, str, int]] = Counter()
    with requests.Session() as session:
        for found in schemathesis.openapi.from_dict(openapi()).get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            asks_for_something = operation.query or operation.path_parameters or operation.body
            if mode is GenerationMode.NEGATIVE and not asks_for_something:
                continue

            @fixed
            @settings(max_examples=40, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode), turn=st.integers(0, 7))
            def any_of_them(case: Any, turn: int) -> None:
                tame(case, [one["task_id"] for one in sent], turn)
                answers[case.method, case.path, check(case, url, session)] += 1

            any_of_them()
    print("\n".join(f"{count:4} {status} {method} {path}" for (method, path, status), count in sorted(answers.items())))
    last = httpx.post(f"{url}/tasks", json={"task_type": "noop"}, timeout=WAIT_S)
    assert last.status_code == 202, "it still does its work"
