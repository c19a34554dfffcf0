"""/metrics of the query service: requests by route and answer, and how far the view has read.

    observed(app, service) → the ASGI application to serve: `app`, wrapped so that its answers are counted

An answer is counted when it begins, so a long poll or a stream counts when it is answered. Routes are counted by their
pattern, never by their path, because task ids are unbounded. A scrape asks the store once for its counts (cached for 1 s).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamtask.documents.examples import answer
from streamtask.observability.prometheus import COUNTER, GAUGE, Given, Samples, Table, Together, family, render
from streamtask.projection.view import ViewService
from streamtask.query_service.gate import LookUp

NO_ROUTE = "(none)"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TASK = "/tasks/{task_id}"
_LOOKED_UP = ("GET", _TASK, "200")

METRICS: Table = {
    "streamtask_http_requests_total": (
        COUNTER,
        ("method", "route", "status"),
        "Responses, by route pattern.",
    ),
    "streamtask_view_tasks": (GAUGE, ("status",), "Rows of the store by status; created: not started yet."),
    "streamtask_view_records_read_total": (
        COUNTER,
        ("kind",),
        "Records folded since the start: requests, status_events, cancels, unreadable.",
    ),
    "streamtask_view_position": (
        GAUGE,
        ("topic", "partition"),
        "Next offset to read; all records below are in the store.",
    ),
    "streamtask_view_lag_records": (GAUGE, (), "Records that were not read yet, at the last check."),
    "streamtask_view_looked_age_seconds": (GAUGE, (), "Time since the last check; grows while no broker answers."),
    "streamtask_view_read_committed_age_seconds": (
        GAUGE,
        (),
        "How long an open transaction has been delaying reads.",
    ),
    "streamtask_view_waiting": (GAUGE, (), "Long polls and reads that are waiting."),
    "streamtask_view_streams": (GAUGE, (), "Open live streams."),
    "streamtask_view_ready": (GAUGE, (), "1 when /ready returns 200."),
    "streamtask_view_healthy": (GAUGE, (), "1 when /health returns 200."),
}


class _Counted:
    """ASGI: counts every answer of the application that it wraps. It answers plain look-ups itself, because what every
    request passes in FastAPI, before its first middleware, costs as much as the answer."""

    def __init__(self, app: FastAPI, counts: Counter[tuple[str, str, str]]) -> None:
        self._app, self._counts = app, counts
        self._look_up: LookUp = app.state.look_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await self._look_up.answers(scope, send):
            self._counts[_LOOKED_UP] += 1
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts[_key(scope, message["status"])] += 1
            await send(message)

        await self._app(scope, receive, counted)


def _key(scope: Scope, status: int) -> tuple[str, str, str]:
    method = scope["method"] if scope["method"] in METHODS else "(other)"
    route = getattr(scope.get("route"), "path", None)
    if route is None:  # the gate answered: with a stored row, or with a refusal
        route = _TASK if status == 200 else NO_ROUTE
    return method, route, str(status)


def observed(app: FastAPI, service: ViewService) -> ASGIApp:
    """`app` with the route /metrics behind the gate (which requires the API key if there is one), and with counting."""
    counts: Counter[tuple[str, str, str]] = Counter()
    process = ProcessCollector(registry=None)

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: answer(None, "docs/reference/metrics.md lists all metrics", media_type="text/plain")},
    )
    async def metrics(request: Request) -> Response:
        families = _families(counts, service, await service.stats())
        content_type, body = render(Together(Given(families), process), request.headers.get("accept", ""))
        return Response(body, 200, {"Content-Type": content_type, "Cache-Control": "no-store"})

    return _Counted(app, counts)


def _families(counts: Counter[tuple[str, str, str]], service: ViewService, stats: dict[str, Any]) -> list[Metric]:
    facts = service.health()
    looked = facts["looked_s_ago"]
    samples: dict[str, Samples] = {
        "streamtask_http_requests_total": list(counts.items()),
        "streamtask_view_tasks": [((status,), count) for status, count in stats["tasks"].items()],
        "streamtask_view_records_read_total": [((kind,), count) for kind, count in stats["read"].items()],
        "streamtask_view_position": [((topic, str(n)), at) for (topic, n), at in service.positions().items()],
        "streamtask_view_lag_records": [((), facts["lag_records"])],
        "streamtask_view_looked_age_seconds": [] if looked is None else [((), looked)],
        "streamtask_view_read_committed_age_seconds": [((), facts["read_committed_age_s"])],
        "streamtask_view_waiting": [((), stats["waiting"])],
        "streamtask_view_streams": [((), stats.get("streams", 0))],
        "streamtask_view_ready": [((), facts["state"] == "ready")],
        "streamtask_view_healthy": [((), service.failure is None)],
    }
    return [family(METRICS, name, samples[name]) for name in METRICS]
