"""The query service over HTTP, route by route: real routes, service, fold and store over a log written by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.documents import examples
from streamtask.domain.identity import Origin, new_task_id
from streamtask.domain.model import TaskResponse
from streamtask.errors import ConfigError, RequestRefused, SubmitError, Unreachable
from streamtask.projection.store import MemoryStore
from streamtask.query_service.gate import check_bind
from streamtask.query_service.http import _etags
from tests.unit.view_bench import Log, bench, until_waiting

pytestmark = pytest.mark.anyio
A_TASK = {"task_type": "census", "parameters": {"path": "a.py"}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """The document of a refusal, held to RFC 9457 and to our names."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["type"] == f"urn:streamtask:problem:{name}"
    assert document["title"]
    return dict(document)


def fields(document: dict[str, Any]) -> dict[str, str]:
    return {error["field"]: error["message"] for error in document["errors"]}


def a_running_task(log: Log, task_id: str | None = None, **request: Any) -> tuple[str, Origin]:
    task_id = task_id or new_task_id()
    origin = log.request(1, 0, {**A_TASK, "task_id": task_id, **request})
    log.status(task_id, "created", origin)
    log.status(task_id, "running", origin, attempt=1)
    return task_id, origin


# --- POST /tasks ------------------------------------------------------------------------------------------------------


async def test_a_submitted_task_is_answered_as_created_and_a_get_never_misses_it() -> None:
    async with bench() as view:
        await view.until_ready()
        answer = await view.http.post("/tasks", json=A_TASK)
        assert answer.status_code == 202
        task = TaskResponse.model_validate_json(answer.content)
        assert (task.status, task.task_type, task.priority) == ("created", "census", 5)
        assert answer.headers["location"] == f"/tasks/{task.task_id}"
        assert answer.headers["consistency-token"] == task.origin == "normal-1@0"
        found = await view.http.get(answer.headers["location"])
        assert (found.status_code, found.content, found.headers["etag"]) == (200, answer.content, '"0"')


async def test_a_get_never_misses_a_submitted_task_even_when_the_view_stands_still() -> None:
    async with bench() as view:
        await view.until_ready()
        view.log.hold()
        answer = await view.http.post("/tasks", json=A_TASK)
        found = await view.http.get(answer.headers["location"])
        assert (found.status_code, found.json()) == (200, answer.json())
        view.log.release()
        await view.until_read()
        assert (await view.http.get(answer.headers["location"])).status_code == 200


async def test_the_priority_chooses_the_band_and_a_given_id_is_kept_in_its_one_spelling() -> None:
    task_id = new_task_id()
    async with bench() as view:
        await view.until_ready()
        answer = await view.http.post("/tasks", json={**A_TASK, "priority": 9, "task_id": task_id.upper()})
        assert answer.json()["task_id"] == task_id
        assert answer.headers["consistency-token"] == "high-1@0"


async def test_the_document_of_the_contract_is_taken() -> None:
    async with bench() as view:
        await view.until_ready()
        answer = await view.http.post("/tasks", json=examples.LONG_INFERENCE)
        assert answer.status_code == 202
        assert answer.headers["consistency-token"] == "high-1@0"


async def test_an_unknown_field_is_refused_naming_the_nearest() -> None:
    async with bench() as view:
        answer = await view.http.post("/tasks", json={**A_TASK, "priorty": 3, "zzz": 1})
        named = fields(problem(answer, 422, "invalid-request"))
        assert "priority" in named["priorty"]
        assert named["zzz"] == "unknown field"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"priority": 0}, "priority"),
        ({"priority": 11}, "priority"),
        ({"priority": "5"}, "priority"),
        ({"priority": 5.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"task_type": ""}, "task_type"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
        ({"task_id": "not-a-uuid"}, "task_id"),
        ({"not_before": "2026-11-24T07:26:00Z", "ordering_key": "k"}, "not_before"),
        ({"created_at": "2026-11-24T07:26:00"}, "created_at"),
    ],
)
async def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    async with bench() as view:
        answer = await view.http.post("/tasks", json={**A_TASK, **change})
        assert field in fields(problem(answer, 422, "invalid-request"))


async def test_several_wrong_fields_are_named_at_once() -> None:
    async with bench() as view:
        answer = await view.http.post("/tasks", json={"priority": 11, "timeout_seconds": 0})
        assert set(fields(problem(answer, 422, "invalid-request"))) == {"task_type", "priority", "timeout_seconds"}


@pytest.mark.parametrize("body", [b"", b"{", b"task", b'{"task_type": NaN}', b"\xff\xfe"])
async def test_a_body_that_is_not_json_is_400(body: bytes) -> None:
    async with bench() as view:
        problem(await view.http.post("/tasks", content=body), 400, "not-json")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"5"])
async def test_json_of_the_wrong_shape_is_422(body: bytes) -> None:
    async with bench() as view:
        problem(await view.http.post("/tasks", content=body), 422, "invalid-request")


async def test_a_body_over_the_limit_is_413_whether_its_length_is_announced_or_not() -> None:
    big = orjson.dumps({**A_TASK, "description": "x" * 200})

    async def in_parts() -> Any:
        for start in range(0, len(big), 50):
            yield big[start : start + 50]

    async with bench(body_bytes_max=150) as view:
        problem(await view.http.post("/tasks", content=big), 413, "body-too-large")
        problem(await view.http.post("/tasks", content=in_parts()), 413, "body-too-large")
        problem(await view.http.post(f"/tasks/{new_task_id()}/cancel", content=b"x" * 20_000), 413, "body-too-large")


@pytest.mark.parametrize("error", [SubmitError("not acknowledged in time"), Unreachable("no broker answered")])
async def test_a_broker_that_is_down_is_503_with_retry_after(error: SubmitError | Unreachable) -> None:
    async with bench() as view:
        view.submitter.refusal = error
        for path, body in (("/tasks", A_TASK), (f"/tasks/{new_task_id()}/cancel", {})):
            answer = await view.http.post(path, json=body)
            assert problem(answer, 503, "kafka-unavailable")["detail"] == str(error)
            assert int(answer.headers["retry-after"]) > 0


async def test_what_the_client_refuses_is_422() -> None:
    async with bench() as view:
        view.submitter.refusal = RequestRefused("too large", fields={"parameters": "too large"})
        assert fields(problem(await view.http.post("/tasks", json=A_TASK), 422, "invalid-request")) == {
            "parameters": "too large"
        }


async def test_a_page_of_another_site_cannot_submit_through_its_visitors_browser() -> None:
    async with bench() as view:
        await view.until_ready()
        problem(
            await view.http.post("/tasks", json=A_TASK, headers={"Origin": "http://evil.test"}), 403, "cross-origin"
        )
        same = await view.http.post("/tasks", json=A_TASK, headers={"Origin": "http://view.test"})
        assert same.status_code == 202


async def test_the_trace_context_of_the_caller_travels_with_the_request() -> None:
    async with bench() as view:
        await view.until_ready()
        await view.http.post("/tasks", json=A_TASK, headers={"traceparent": "00-ab-cd-01"})
        assert ("traceparent", b"00-ab-cd-01") in view.log._records["t.requests.normal", 1][0].headers


# --- GET /tasks/{id} --------------------------------------------------------------------------------------------------


async def test_the_stored_bytes_are_served_as_they_are() -> None:
    log = Log()
    task_id, origin = a_running_task(log)
    version = log.status(task_id, "completed", origin, result='{"名": 12345678901234567890123}'.encode())
    async with bench(log) as view:
        await view.until_ready()
        answer = await view.http.get(f"/tasks/{task_id}")
        assert answer.content == log._records["t.status", 0][-1].value
        assert answer.headers["etag"] == f'"{version}"'
        assert answer.headers["content-type"] == "application/json"
        spelled = await view.http.get(f"/tasks/{task_id.upper()}")
        slow = await view.http.get(f"/tasks/{task_id}?wait=0")
        assert answer.content == spelled.content == slow.content
        assert answer.headers == spelled.headers == slow.headers


async def test_an_unknown_id_is_404_and_something_else_than_a_uuid_is_422() -> None:
    async with bench() as view:
        await view.until_ready()
        task_id = new_task_id()
        assert problem(await view.http.get(f"/tasks/{task_id}"), 404, "unknown-task")["task_id"] == task_id
        assert fields(problem(await view.http.get("/tasks/42"), 422, "invalid-request")) == {
            "task_id": "must be a UUID"
        }


async def test_nothing_newer_than_if_none_match_is_304_without_a_body() -> None:
    log = Log()
    task_id, _ = a_running_task(log)
    async with bench(log) as view:
        await view.until_ready()
        tag = (await view.http.get(f"/tasks/{task_id}")).headers["etag"]
        for text in (tag, f"W/{tag}", f'"99", {tag}'):
            answer = await view.http.get(f"/tasks/{task_id}", headers={"If-None-Match": text})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        for text in ('"99"', '"x"', ""):
            answer = await view.http.get(f"/tasks/{task_id}", headers={"If-None-Match": text})
            assert answer.status_code == 200


async def test_a_long_poll_is_answered_by_the_next_change() -> None:
    log = Log()
    task_id, origin = a_running_task(log)
    async with bench(log) as view:
        await view.until_ready()
        seen = int((await view.http.get(f"/tasks/{task_id}")).headers["etag"].strip('"'))
        async with asyncio.TaskGroup() as group:
            poll = group.create_task(view.http.get(f"/tasks/{task_id}?wait=30&after_version={seen}"))
            same = group.create_task(view.http.get(f"/tasks/{task_id}?wait=30", headers={"If-None-Match": f'"{seen}"'}))
            await until_waiting(view, 2)
            version = log.status(task_id, "running", origin, attempt=1, progress=0.5)
        for answer in (poll.result(), same.result()):
            assert (answer.status_code, answer.headers["etag"]) == (200, f'"{version}"')
            assert answer.json()["progress"] == 0.5
        assert view.service.watchers.count == 0


async def test_a_long_poll_without_a_version_waits_for_the_end() -> None:
    log = Log()
    task_id, origin = a_running_task(log)
    async with bench(log) as view:
        await view.until_ready()
        async with asyncio.TaskGroup() as group:
            poll = group.create_task(view.http.get(f"/tasks/{task_id}?wait=30"))
            await until_waiting(view, 1)
            log.status(task_id, "running", origin, attempt=1, progress=0.5)
            await view.until_read()
            assert not poll.done()
            log.status(task_id, "failed", origin, attempt=1, error="no")
        assert poll.result().json()["status"] == "failed"


async def test_a_long_poll_for_a_task_that_has_ended_does_not_wait() -> None:
    log = Log()
    task_id, origin = a_running_task(log)
    version = log.status(task_id, "completed", origin)
    async with bench(log) as view:
        await view.until_ready()
        async with asyncio.timeout(60):
            answer = await view.http.get(f"/tasks/{task_id}?wait=30&after_version={version}")
        assert (answer.status_code, answer.headers["etag"]) == (200, f'"{version}"')


async def test_a_long_poll_over_its_time_answers_what_is_known() -> None:
    log = Log()
    task_id, _ = a_running_task(log)
    async with bench(log) as view:
        await view.until_ready()
        assert (await view.http.get(f"/tasks/{task_id}?wait=0.05")).json()["status"] == "running"
        unknown = await view.http.get(f"/tasks/{new_task_id()}?wait=0.05&after_version=0")
        problem(unknown, 404, "unknown-task")


async def test_a_task_can_be_awaited_before_anybody_has_submitted_it() -> None:
    task_id = new_task_id()
    async with bench() as view:
        await view.until_ready()
        async with asyncio.TaskGroup() as group:
            poll = group.create_task(view.http.get(f"/tasks/{task_id}?wait=30&after_version=0"))
            await until_waiting(view, 1)
            a_running_task(view.log, task_id)
        assert poll.result().json()["status"] == "running"


@pytest.mark.parametrize("query", ["wait=-1", "wait=61", "wait=x", "wait=nan", "after_version=-1", "after_version=x"])
async def test_a_wrong_wait_is_named(query: str) -> None:
    async with bench() as view:
        answer = await view.http.get(f"/tasks/{new_task_id()}?{query}")
        assert set(fields(problem(answer, 422, "invalid-request"))) == {query.split("=")[0]}


async def test_a_consistency_token_makes_a_replica_wait_until_it_is_that_fresh() -> None:
    async with bench() as view:
        await view.until_ready()
        view.log.hold()
        task_id, origin = a_running_task(view.log)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(view.http.get(f"/tasks/{task_id}", headers={"Consistency-Token": str(origin)}))
            await until_waiting(view, 1)
            view.log.release()
        assert asked.result().status_code == 200
        listed = await view.http.get("/tasks", headers={"Consistency-Token": str(origin)})
        assert [task["task_id"] for task in listed.json()["tasks"]] == [task_id]


@pytest.mark.parametrize("text", ["x", "high-0", "urgent-0@1", "high-0@-1", "high-0@1@2"])
async def test_a_consistency_token_that_is_none_is_422(text: str) -> None:
    async with bench() as view:
        answer = await view.http.get(f"/tasks/{new_task_id()}", headers={"Consistency-Token": text})
        assert "Consistency-Token" in fields(problem(answer, 422, "invalid-request"))


async def test_a_replica_that_does_not_get_that_fresh_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtask.query_service.route_checks.FRESH_S", 0.05)
    async with bench() as view:
        await view.until_ready()
        answer = await view.http.get(f"/tasks/{new_task_id()}", headers={"Consistency-Token": "high-0@7"})
        problem(answer, 503, "not-fresh")
        assert "retry-after" in answer.headers


async def test_before_it_has_caught_up_an_unknown_id_is_503_not_404() -> None:
    log = Log()
    log.hold()
    task_id, _ = a_running_task(log)
    async with bench(log) as view:
        problem(await view.http.get(f"/tasks/{task_id}"), 503, "not-ready")
        log.release()
        await view.until_ready()
        assert (await view.http.get(f"/tasks/{task_id}")).status_code == 200


async def test_more_waiters_than_may_wait_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as view:
        await view.until_ready()
        monkeypatch.setattr(view.service.watchers, "_waiters_max", 1)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(view.http.get(f"/tasks/{new_task_id()}?wait=30"))
            await until_waiting(view, 1)
            problem(await view.http.get(f"/tasks/{new_task_id()}?wait=30"), 503, "too-many-waiters")
            view.service.stop()
        problem(first.result(), 404, "unknown-task")


# --- GET /tasks -------------------------------------------------------------------------------------------------------


async def test_tasks_are_listed_newest_first_and_page_by_page() -> None:
    log = Log()
    ids = [new_task_id() for _ in range(5)]
    for number, task_id in enumerate(ids):
        log.request(1, number % 2, {**A_TASK, "task_id": task_id}, timestamp_ms=1_790_000_000_000 + number)
    async with bench(log) as view:
        await view.until_ready()
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = (await view.http.get("/tasks", params=query)).json()
            assert len(page["tasks"]) <= 2
            seen += [task["task_id"] for task in page["tasks"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert seen == ids[::-1]


async def test_tasks_are_listed_by_status_type_tenant_and_time() -> None:
    log = Log()
    one, _ = a_running_task(log, task_type="a", tenant="acme")
    two = new_task_id()
    log.request(0, 1, {"task_type": "b", "task_id": two}, timestamp_ms=1_790_000_500_000)
    async with bench(log) as view:
        await view.until_ready()
        for query, expected in (
            ({"status": "running"}, [one]),
            ({"status": "created"}, [two]),
            ({"status": "failed"}, []),
            ({"task_type": "b"}, [two]),
            ({"tenant": "acme"}, [one]),
            ({"since": "2026-09-21T14:21:40Z"}, [two]),
            ({"since": "2026-09-21T16:21:40+02:00"}, [two]),
            ({"status": "running", "task_type": "b"}, []),
            ({}, [two, one]),
        ):
            answer = await view.http.get("/tasks", params=query)
            assert [task["task_id"] for task in answer.json()["tasks"]] == expected, query


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=done", "status"),
        ("stauts=failed", "stauts"),
        ("since=yesterday", "since"),
        ("since=2026-11-24T07:26:00", "since"),
        ("cursor=x", "cursor"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
    ],
)
async def test_a_wrong_query_is_named_and_not_ignored(query: str, field: str) -> None:
    async with bench() as view:
        assert field in fields(problem(await view.http.get(f"/tasks?{query}"), 422, "invalid-request"))


# --- POST /tasks/{id}/cancel ------------------------------------------------------------------------------------------


async def test_a_cancel_is_passed_on_with_its_reason() -> None:
    log = Log()
    task_id, _ = a_running_task(log)
    async with bench(log) as view:
        await view.until_ready()
        answer = await view.http.post(f"/tasks/{task_id.upper()}/cancel", json={"reason": "没用了"})
        assert (answer.status_code, answer.json()["status"]) == (202, "running")
        assert view.submitter.cancelled == [(task_id, "没用了")]
        await view.until_read()
        assert (await view.http.get("/stats")).json()["read"]["cancels"] == 1


async def test_a_cancel_of_an_unseen_id_is_taken_and_one_of_an_ended_task_is_409() -> None:
    log = Log()
    ended, origin = a_running_task(log)
    log.status(ended, "completed", origin)
    async with bench(log) as view:
        await view.until_ready()
        unseen = new_task_id()
        assert (await view.http.post(f"/tasks/{unseen}/cancel")).status_code == 202
        assert "completed" in problem(await view.http.post(f"/tasks/{ended}/cancel"), 409, "already-ended")["detail"]
        assert view.submitter.cancelled == [(unseen, None)]


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        (b"{", 400, "not-json"),
        (b"[]", 422, "invalid-request"),
        (b'{"reasn": "x"}', 422, "invalid-request"),
        (b'{"reason": 5}', 422, "invalid-request"),
        (b'{"reason": "%s"}' % (b"x" * 1_001), 422, "invalid-request"),
    ],
)
async def test_a_wrong_cancel_is_refused(body: bytes, status: int, name: str) -> None:
    async with bench() as view:
        problem(await view.http.post(f"/tasks/{new_task_id()}/cancel", content=body), status, name)
        problem(await view.http.post("/tasks/42/cancel"), 422, "invalid-request")
        assert view.submitter.cancelled == []


# --- Operations -------------------------------------------------------------------------------------------------------


async def test_ready_is_503_until_the_view_has_caught_up() -> None:
    log = Log()
    log.hold()
    a_running_task(log)
    async with bench(log) as view:
        assert problem(await view.http.get("/ready"), 503, "not-ready")["health"]["state"] == "restoring"
        assert (await view.http.get("/health")).status_code == 200
        log.release()
        await view.until_ready()
        assert (await view.http.get("/ready")).json()["state"] == "ready"


async def test_a_view_that_has_failed_is_unhealthy_and_says_why() -> None:
    async with bench() as view:
        await view.until_ready()
        view.log.broken = OSError("disk full")
        async with asyncio.timeout(60):
            await view.service.ended.wait()
        assert "disk full" in problem(await view.http.get("/health"), 503, "view-failed")["detail"]
        problem(await view.http.get("/ready"), 503, "not-ready")


async def test_stats_count_by_status_and_what_was_read() -> None:
    log = Log()
    a_running_task(log)
    log.append("t.status", 0, b"not json")
    async with bench(log) as view:
        await view.until_ready()
        stats = (await view.http.get("/stats")).json()
        assert stats["tasks"] == {"created": 0, "running": 1, "completed": 0, "failed": 0, "cancelled": 0}
        assert stats["read"] == {"requests": 1, "status_events": 2, "cancels": 0, "unreadable": 1}


async def test_the_schema_shows_the_document_of_the_contract_and_every_route() -> None:
    async with bench() as view:
        schema = (await view.http.get("/openapi.json")).json()
        post = schema["paths"]["/tasks"]["post"]
        shown = post["requestBody"]["content"]["application/json"]
        assert shown["examples"]["long_inference"]["value"] == examples.LONG_INFERENCE
        asked = schema["components"]["schemas"][shown["schema"]["$ref"].rsplit("/", 1)[1]]
        assert (asked["required"], asked["additionalProperties"]) == (["task_type"], False)
        assert {"202", "400", "413", "422", "503"} <= set(post["responses"])
        tasks = ("/tasks", *(f"/tasks/{{task_id}}{what}" for what in ("", "/cancel", "/redrive", "/events")))
        routes = (*tasks, "/events", "/health", "/ready", "/stats")
        assert set(schema["paths"]) == set(routes)


async def test_the_docs_page_needs_no_other_host() -> None:
    async with bench() as view:
        page = (await view.http.get("/docs")).text
        assert "openapi.json" in page
        assert "//" not in page.replace("//www.w3.org", "")


async def test_routes_and_methods_that_are_none_are_problems_too() -> None:
    async with bench() as view:
        problem(await view.http.get("/nowhere"), 404, "no-such-route")
        answer = await view.http.delete("/tasks")
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"]


async def test_what_nobody_foresaw_is_a_500_without_its_insides(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStore):
        def counts(self) -> dict[str, int]:
            raise ZeroDivisionError("a secret")

    async with bench(store=Broken()) as view:
        answer = await view.http.get("/stats")
        assert "secret" not in str(problem(answer, 500, "internal"))
    assert "a secret" in caplog.text


# --- Who may come in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer s3cret"}, {"X-API-Key": "s3cret"}])
async def test_the_key_opens_every_route(headers: dict[str, str]) -> None:
    async with bench(api_key="s3cret") as view:
        await view.until_ready()
        assert (await view.http.get("/tasks", headers=headers)).status_code == 200
        answer = await view.http.post("/tasks", json=A_TASK, headers=headers)
        assert (await view.http.get(answer.headers["location"], headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}, {"X-API-Key": ""}, {"X-API-Key": "é"}],
)
async def test_without_the_key_only_health_ready_and_the_description_are_open(headers: dict[str, str]) -> None:
    log = Log()
    task_id, _ = a_running_task(log)
    async with bench(log, api_key="s3cret") as view:
        await view.until_ready()
        sent = [(name.encode(), text.encode()) for name, text in headers.items()]
        for path in (f"/tasks/{task_id}", "/tasks", "/stats", "/nowhere"):
            answer = await view.http.get(path, headers=sent)
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        problem(await view.http.post("/tasks", json=A_TASK, headers=sent), 401, "unauthorized")
        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert (await view.http.get(path, headers=sent)).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_key(host: str) -> None:
    check_bind(host, None, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.1.2.3", "example.org"])
def test_any_other_address_needs_a_key_or_the_word_insecure(host: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        check_bind(host, None, insecure=False)
    check_bind(host, "key", insecure=False)
    check_bind(host, None, insecure=True)


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(ConfigError, match="empty"):
        check_bind("127.0.0.1", " ", insecure=False)


@given(st.lists(st.integers(0, 10**12)), st.booleans())
def test_every_tag_that_was_given_is_understood_again(versions: list[int], weak: bool) -> None:
    text = ", ".join(f'{"W/" if weak else ""}"{version}"' for version in versions)
    assert _etags(text) == set(versions)


@settings(deadline=None)
@given(st.text())
def test_no_text_in_if_none_match_breaks_the_look_up(text: str) -> None:
    assert all(version >= 0 for version in _etags(text))
