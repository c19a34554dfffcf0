"""`streamtask audit`: read all topics back and judge them, once or continuously beside a running system."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext
from streamtask.cli.moments import moment
from streamtask.errors import ConfigError

if TYPE_CHECKING:
    from streamtask.audit import Report, Violation

STDOUT = "-"


SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only records since TIME: RFC 3339, or an age like 90s, 5m, 2h, 7d.",
    ),
]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Keep auditing a running system until Ctrl-C or SIGTERM.")
]
EveryOption = Annotated[
    float,
    typer.Option("--every", min=0.1, metavar="S", help="Print the counts every S seconds (with --follow)."),
]
EvidenceOption = Annotated[
    str | None,
    typer.Option(
        "--evidence",
        metavar="FILE",
        help="Write each violation to FILE as a line of JSON (- for stdout).",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        metavar="S",
        help="Give up after S seconds without a record (not with --follow).",
    ),
]


def audit(
    cli: CommandContext,
    since: SinceOption = None,
    follow: FollowOption = False,
    every: EveryOption = 10.0,
    evidence: EvidenceOption = None,
    timeout: TimeoutOption = 120.0,
) -> int | None:
    """Check every task's history on the topics; exit code 0 only without violations."""
    if evidence == STDOUT and cli.json:
        raise ConfigError("--evidence - and --json would both write to stdout. Give --evidence a file name.")
    begin = moment("--since", since, past=True)
    settings = cli.settings()
    kafka = settings.kafka_for("cli")
    from streamtask.audit import follow_audit, run_audit
    from streamtask.domain.model import to_ms
    from streamtask.schema_registry import Formats

    since_ms = None if begin is None else to_ms(begin)
    with ExitStack() as stack:
        formats = stack.enter_context(closing(Formats(settings)))
        printer = AuditPrinter(cli, None if evidence is None else stack.enter_context(_lines(evidence)), follow=follow)
        if follow:
            report = follow_audit(
                kafka,
                settings.topics,
                stack.enter_context(_Stopped()).event,
                reader=formats.insisting,
                since_ms=since_ms,
                every_s=every,
                listener=printer,
            )
        else:
            report = run_audit(
                kafka,
                settings.topics,
                timeout_s=timeout,
                reader=formats.insisting,
                since_ms=since_ms,
                on_violation=printer.violation,
            )
        printer.report(report)
    return 0 if report.clean else EXIT_BAD_ANSWER


class AuditPrinter:
    """Prints violations, counts and the report. evidence: a file that gets the violations as JSON lines."""

    def __init__(self, cli: CommandContext, evidence: TextIO | None, *, follow: bool) -> None:
        self._cli = cli
        self._evidence = evidence
        self._follow = follow
        self._piped = evidence is sys.stdout  # if so, everything else goes to stderr

    def violation(self, violation: Violation) -> None:
        line = violation.to_evidence()
        if self._evidence is not None:
            self._evidence.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._evidence.flush()
        if not self._follow or self._piped:
            return
        if self._cli.json:
            self._cli.answer({"violation": line})
        else:
            self._say(f"{_now()}  VIOLATION {violation.kind}: {violation.text} ({violation.task_id})")

    def figures(self, figures: dict[str, Any]) -> None:
        if self._cli.json:
            self._cli.answer({"figures": figures})
            return
        behind = f", {figures['behind']} behind" if figures["behind"] else ""
        self._say(
            f"{_now()}  {figures['requests']} requests, {figures['events']} status events, {figures['ended']} ended, "
            f"{figures['open']} open, {figures['violations']} violations{behind}"
        )

    def trouble(self, text: str) -> None:
        self._cli.note(f"{_now()}  {text}")

    def report(self, report: Report) -> None:
        if self._cli.json:
            self._cli.answer({"report": report.to_json()} if self._follow else report)
        else:
            self._say(report.to_text())

    def _say(self, text: str) -> None:
        if self._piped:
            self._cli.note(text)
        else:
            typer.echo(text)


class _Stopped:
    """The first Ctrl-C or SIGTERM sets `event`; the second one has its usual effect."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Stopped:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, *_: object) -> None:
        self.event.set()
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def __exit__(self, *error: object) -> None:
        self._restore()


def _lines(name: str) -> Any:
    """The file as a context manager; for `-` it is stdout, which is not closed. Raises ConfigError."""
    if name == STDOUT:
        from contextlib import nullcontext

        return nullcontext(sys.stdout)
    try:
        return open(name, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--evidence: cannot write {name} ({error.strerror}). Choose another file.") from None


def _now() -> str:
    return time.strftime("%H:%M:%S")
