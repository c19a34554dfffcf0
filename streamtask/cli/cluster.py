"""Commands that maintain a cluster: topics, doctor, audit, dead."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamtask.cli.audit import audit
from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext, command, group
from streamtask.cli.redrive import dead_redrive
from streamtask.cli.task_output import age
from streamtask.errors import ConfigError, NotAllowed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from streamtask.codec import DeadRecord
    from streamtask.config import TopicNames
    from streamtask.config.kafka import KafkaSettings
    from streamtask.kafka.topic_checks import Finding


class RoleName(StrEnum):
    """A copy of streamtask.kafka.acls.Role, which is not imported at start-up."""

    PRODUCER = "producer"
    WORKER = "worker"
    SUPERVISOR = "supervisor"
    VIEW = "view"
    OPERATOR = "operator"
    ADMIN = "admin"


ROLES = ", ".join(RoleName)
MARKS = {"error": "[red]✗[/]", "warning": "[yellow]![/]", "info": "[blue]i[/]"}
WIDE = 110  # columns of a terminal that has room for what was wrong


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    topics = group(help="Create, check and secure the topics of a prefix.")
    command(topics, "create")(topics_create)
    command(topics, "check")(topics_check)
    command(topics, "acls")(topics_acls)
    app.add_typer(topics, name="topics", rich_help_panel="Cluster")
    command(app, "doctor", rich_help_panel="Cluster")(doctor)
    command(app, "audit", rich_help_panel="Cluster")(audit)
    dead = group(help="List, show and redrive dead letters (failed or unreadable requests).")
    command(dead, "list")(dead_list)
    command(dead, "show")(dead_show)
    command(dead, "redrive")(dead_redrive)
    app.add_typer(dead, name="dead", rich_help_panel="Cluster")


def topics_create(
    cli: CommandContext,
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions",
            min=1,
            metavar="N",
            help="Partitions per topic; limits how many processes can work. (default: 12)",
        ),
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="Add partitions to existing topics; ordering keys then move.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Also correct the settings of existing topics.")] = False,
) -> int | None:
    """Create missing topics; add partitions or correct settings on request."""
    settings = cli.settings(partitions=partitions)
    kafka = settings.kafka_for("cli")
    if grow and partitions is None:
        raise ConfigError("--grow needs the new number of partitions. Add --partitions N.")
    from streamtask.kafka.admin import ensure_topics

    done = ensure_topics(kafka, settings.topics, partitions=settings.partitions, grow=grow, fix=fix)
    if cli.json:
        cli.answer(
            {
                "created": list(done.created),
                "grown": list(done.grown),
                "fixed": [fix._asdict() for fix in done.fixed],
                "findings": [_document(finding) for finding in done.findings],
            }
        )
        return None
    console = cli.console()
    for verb, names in (("created", done.created), ("added partitions to", done.grown)):
        for name in names:
            console.print(f"[green]✓[/] {verb} {name}", soft_wrap=True)
    for fixed in done.fixed:
        console.print(f"[green]✓[/] set {fixed.name}={fixed.value} on {fixed.topic}", soft_wrap=True)
    if not (done.created or done.grown or done.fixed):
        console.print(f"All topics of prefix {settings.prefix} exist already.")
    _print_findings(console, done.findings)
    return None


def topics_check(cli: CommandContext) -> int | None:
    """Check that the topics exist with the required settings; exit code 1 on errors."""
    return _check(cli, topics_only=True)


def topics_acls(
    cli: CommandContext,
    role: Annotated[RoleName, typer.Argument(metavar="ROLE", help=ROLES, show_default=False)],
    principal: Annotated[
        str,
        typer.Option(
            "--principal",
            metavar="User:NAME",
            help="Principal to grant the ACLs to.",
            show_default=False,
        ),
    ],
) -> int | None:
    """Print the kafka-acls commands that grant a principal the ACLs of a role. Changes nothing."""
    settings = cli.settings()
    from streamtask.kafka.acls import Role, acls_of, commands

    found = acls_of(Role(role.value), settings.topics)
    if cli.json:
        rows = [
            {
                "resource": acl.resource.value,
                "name": acl.name,
                "prefixed": acl.prefixed,
                "operation": acl.operation.value,
                "must": acl.must,
                "without": acl.without,
            }
            for acl in found
        ]
        cli.answer({"role": role.value, "principal": principal, "acls": rows})
        return None
    for line in commands(found, principal, settings.bootstrap_servers or "HOST:PORT"):
        cli.console().print(line, markup=False, soft_wrap=True)
    return None


def doctor(
    cli: CommandContext,
    role: Annotated[
        RoleName | None,
        typer.Option("--role", metavar="ROLE", help=f"Also check that this client has the ACLs of ROLE: {ROLES}."),
    ] = None,
) -> int | None:
    """Find misconfigured brokers, topics and groups, and print the fixes; exit code 1 on errors."""
    return _check(cli, topics_only=False, role=role)


def _check(cli: CommandContext, *, topics_only: bool, role: RoleName | None = None) -> int:
    settings = cli.settings()
    kafka = settings.kafka_for("cli")
    from streamtask.kafka.admin import cluster_facts
    from streamtask.kafka.topic_checks import ClusterFacts, Finding, judge
    from streamtask.kafka.topics import Severity

    names = settings.topics
    lacking = _lacking(kafka, names, role) if role is not None else []
    try:
        facts = cluster_facts(kafka, names)
        findings = [*lacking, *judge(facts, names)]
    except NotAllowed as error:
        if role is None:
            raise
        unseen = Finding(
            severity=Severity.INFO, code="unreadable", what="Not checked.", where=str(error).split(". ")[0]
        )
        facts, findings = ClusterFacts(kafka.bootstrap, "not seen", (), {}), [*lacking, unseen]
    if topics_only:
        findings = [finding for finding in findings if set(finding.where.split(", ")) & set(names.all)]
    errors = sum(finding.severity.value == "error" for finding in findings)
    code = EXIT_BAD_ANSWER if errors else 0
    if cli.json:
        cli.answer(
            {
                "ok": not errors,
                "cluster_id": facts.cluster_id,
                "brokers": list(facts.brokers),
                "prefix": settings.prefix,
                "partitions": {name: len(topic.partitions) for name, topic in facts.topics.items()},
                "findings": [_document(finding) for finding in findings],
            }
        )
        return code
    console = cli.console()
    console.print(
        f"[bold]{facts.bootstrap}[/], cluster {facts.cluster_id}, {len(facts.brokers)} broker(s), "
        f"prefix {settings.prefix}: {len(facts.topics)} of {len(names.all)} topics",
        soft_wrap=True,
    )
    _print_findings(console, findings)
    if errors:
        console.print(f"[red]{errors} error(s)[/]: streamtask's guarantees do not hold until they are fixed.")
    else:
        console.print("[green]No errors.[/]")
    return code


def _lacking(kafka: KafkaSettings, names: TopicNames, role: RoleName) -> list[Finding]:
    from streamtask.kafka.acls import Role
    from streamtask.kafka.permissions import findings, granted

    known = Role(role.value)
    return findings(granted(kafka, names, known), known, names)


def _print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """Prints each finding: what is wrong, why it matters, and the command (last, on its own line, easy to copy)."""
    from rich.padding import Padding
    from rich.text import Text

    same: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        # A problem that several topics share is printed once.
        alike = (finding.severity.value, finding.code, finding.what, finding.command or "")
        same.setdefault(alike, []).append(finding)
    for (severity, code, what, fix), alike_findings in same.items():
        where = ", ".join(dict.fromkeys(finding.where for finding in alike_findings))
        first = alike_findings[0]
        values = ", ".join(dict.fromkeys(finding.value for finding in alike_findings if finding.value))
        seen = f" is {values}, must be {first.needed}" if first.needed else ""
        head = f" missing: {where}" if code == "topics_missing" else f" {where}: {code}{seen}"
        console.print(Text.from_markup(MARKS[severity]) + Text(head))
        console.print(Padding(Text(what), (0, 0, 0, 2), expand=False))
        if fix:
            console.print(Text(f"  → {fix}", style="bold"), soft_wrap=True)


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "where": finding.where,
        "value": finding.value,
        "needed": finding.needed,
        "what": finding.what,
        "command": finding.command,
    }


def dead_list(
    cli: CommandContext,
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="CODE",
            help="Only dead letters with this error code, like timeout or invalid_request.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, metavar="N", help="Show at most N.")] = 20,
) -> int | None:
    """List dead letters, newest first."""
    letters = _letters(cli)
    if code is not None:
        letters = [letter for letter in letters if letter.reason == code]
    shown = letters[:limit]
    if cli.json:
        cli.answer({"dead": [_letter(letter) for letter in shown], "total": len(letters)})
        return None
    if not shown:
        cli.note("No dead letters" + (f" with code {code}." if code else "."))
        return None
    console = cli.console()
    console.print(dead_table(shown, console.width))
    if len(letters) > len(shown):
        cli.note(f"{len(letters) - len(shown)} more. Raise --limit to see them.")
    return None


def dead_table(letters: list[DeadRecord], width: int) -> Table:
    """Four columns that fit into 80, and what was wrong if there is room. A letter without a task_id shows its origin."""
    from rich.table import Table
    from rich.text import Text

    gap, widths = 2, {"task_id": 36, "type": 15, "code": 18, "age": 4}
    if width >= WIDE:
        widths["what"] = width - sum(widths.values()) - gap * len(widths)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0), collapse_padding=True)
    for name, column_width in widths.items():
        table.add_column(name, width=column_width, no_wrap=True, overflow="ellipsis")
    for letter in letters:
        text = Text(" ".join(letter.text.split()))
        row = (letter.task_id or letter.origin, Text(_type_of(letter)), letter.reason, _age_of(letter), text)
        table.add_row(*row[: len(table.columns)])
    return table


def _type_of(letter: DeadRecord) -> str:
    """The task type of the original request; "" if its bytes are not JSON, or say none."""
    try:
        document = json.loads(letter.value or b"")
    except ValueError:
        return ""
    found = document.get("task_type") if isinstance(document, dict) else None
    return found if isinstance(found, str) else ""


def _age_of(letter: DeadRecord) -> str:
    try:
        return age(datetime.fromisoformat(letter.failed_at))
    except ValueError:
        return ""


def dead_show(
    cli: CommandContext,
    which: Annotated[
        str,
        typer.Argument(
            metavar="ORIGIN|TASK_ID",
            help="Origin (like high-3@12345) or task id, as `dead list` shows.",
            show_default=False,
        ),
    ],
) -> int | None:
    """Show a dead letter and its original request."""
    found = [letter for letter in _letters(cli) if which in (letter.origin, letter.task_id)]
    if not found:
        raise ConfigError(f"No dead letter matches {which!r}. List them: streamtask dead list")
    letter = found[0]
    if cli.json:
        cli.answer(_letter(letter))
        return None
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _letter(letter).items():
        if value not in (None, "", {}):
            grid.add_row(name, Text(str(value)))
    cli.console().print(grid)
    return None


def _letters(cli: CommandContext) -> list[DeadRecord]:
    settings = cli.settings()
    settings.bootstrap()
    from streamtask.projection.topic_scan import read_dead

    return asyncio.run(asyncio.to_thread(read_dead, settings))


def _letter(letter: DeadRecord) -> dict[str, Any]:
    value = None if letter.value is None else letter.value.decode("utf-8", "backslashreplace")
    return {
        "origin": letter.origin,
        "task_id": letter.task_id or None,
        "reason": letter.reason,
        "text": letter.text,
        "attempt": letter.attempt,
        "failed_at": letter.failed_at,
        "worker": letter.worker,
        "traceback": letter.traceback,
        "topic": letter.source_topic,
        "key": None if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
        "headers": {name: held.decode("utf-8", "backslashreplace") for name, held in letter.headers},
        "value_bytes": letter.value_bytes,
        "value": value,
    }
