"""/metrics of the query service: what it counts, under which names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamtask.domain.identity import new_task_id
from streamtask.query_service.http import create_app
from streamtask.query_service.metrics import METRICS, observed
from tests.unit.view_bench import Bench, LogSubmitter, bench, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def seen(view: Bench, api_key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service as server.py serves it."""
    app = observed(create_app(view.service, LogSubmitter(view.log), api_key=api_key), view.service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as http:
        yield http


async def samples(http: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """{(name, label values in the order of their labels' names...): value}"""
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_answers_are_counted_by_route_and_never_by_task() -> None:
    async with bench() as view, seen(view) as http:
        await view.until_ready()
        place = (await http.post("/tasks", json={"task_type": "census"})).headers["location"]
        for _ in range(3):
            assert (await http.get(place)).status_code == 200  # the gate answers
        assert (await http.get(place, params={"wait": 0})).status_code == 200  # the route does
        assert (await http.get(f"/tasks/{new_task_id()}")).status_code == 404
        assert (await http.get("/no/such/page")).status_code == 404
        counted = {key[1:]: n for key, n in (await samples(http)).items() if key[0] == "streamtask_http_requests_total"}
        assert counted == {
            ("POST", "/tasks", "202"): 1,
            ("GET", "/tasks/{task_id}", "200"): 4,
            ("GET", "/tasks/{task_id}", "404"): 1,
            ("GET", "(none)", "404"): 1,
        }
        assert ("streamtask_http_requests_total", "GET", "/metrics", "200") in await samples(http)


async def test_it_tells_how_far_the_view_has_read_and_what_it_holds() -> None:
    async with bench() as view, seen(view) as http:
        await view.until_ready()
        task_id = new_task_id()
        origin = view.log.request(1, 0, {"task_type": "census", "task_id": task_id})
        view.log.status(task_id, "created", origin)
        await until(lambda: sum(view.service.positions().values()) == 2)  # published after the store has them
        found = await samples(http)
        names = view.service.names
        assert found["streamtask_view_position", "0", names.requests[1]] == 1
        assert found["streamtask_view_tasks", "created"] == 1
        assert found["streamtask_view_records_read_total", "status_events"] == 1
        assert found["streamtask_view_ready",] == found["streamtask_view_healthy",] == 1
        assert found["streamtask_view_waiting",] == 0
        assert "process_resident_memory_bytes" in {name for name, *_ in found}


async def test_a_view_that_has_not_caught_up_is_not_ready() -> None:
    async with bench() as view, seen(view) as http:
        await view.until_ready()
        view.log.hold()
        view.log.go_stale()
        found = await samples(http)
        while found["streamtask_view_ready",]:
            found = await samples(http)
        assert found["streamtask_view_healthy",] == 1
        view.log.release()


async def test_a_key_is_asked_for_where_there_is_one() -> None:
    async with bench() as view, seen(view, "secret") as http:
        assert (await http.get("/metrics")).status_code == 401
        answer = await http.get("/metrics", headers={"X-API-Key": "secret"})
        assert answer.status_code == 200
        assert 'route="(none)",status="401"' in answer.text


async def test_every_metric_of_the_table_is_exported_with_its_kind_and_its_labels() -> None:
    async with bench() as view, seen(view) as http:
        await view.until_ready()
        await http.post("/tasks", json={"task_type": "census"})
        text = (await http.get("/metrics")).text
        families = {
            family.name: family
            for family in text_string_to_metric_families(text)
            if family.name.startswith("streamtask_")
        }
        assert set(families) == {name.removesuffix("_total") for name in METRICS}
        for name, (kind, labels, meaning) in METRICS.items():
            family = families[name.removesuffix("_total")]
            assert (family.type, family.documentation) == (kind, meaning)
            for sample in family.samples:
                assert set(sample.labels) == set(labels), sample
