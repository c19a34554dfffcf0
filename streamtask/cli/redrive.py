"""`streamtask dead redrive`: prints the plan; with --yes, carries it out."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext
from streamtask.cli.moments import moment
from streamtask.domain.identity import canonical
from streamtask.errors import ConfigError

if TYPE_CHECKING:
    from streamtask.config import Settings
    from streamtask.redrive import Choice, Plan, Redrive, Refusal

SAMPLE = 10  # rows shown to people
DOCUMENTS_MAX = 1_000  # items of one kind in a JSON answer; the counts include all items


WhichArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ORIGIN|TASK_ID",
        help="Origins or task ids, as `dead list` shows.",
        show_default=False,
    ),
]
TaskTypeOption = Annotated[
    str | None,
    typer.Option(
        "--type",
        "-t",
        metavar="TYPE",
        help="Only tasks of this type.",
    ),
]
CodeOption = Annotated[
    str | None,
    typer.Option(
        "--code",
        metavar="CODE",
        help="Only dead letters with this error code, like timeout or handler_error.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Failed at or after TIME: RFC 3339, or an age like 90s, 5m, 1h, 7d.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="TIME",
        help="Failed before TIME (same formats as --since).",
    ),
]
TextOption = Annotated[
    str | None, typer.Option("--text", metavar="TEXT", help="Only dead letters whose error message contains TEXT.")
]
RateOption = Annotated[
    float | None, typer.Option("--rate", min=0.001, metavar="N", help="Send at most N requests per second.")
]


def dead_redrive(
    cli: CommandContext,
    which: WhichArgument = None,
    task_type: TaskTypeOption = None,
    code: CodeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    text: TextOption = None,
    rate: RateOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send the requests; without --yes, only print the plan.")] = False,
) -> int | None:
    """Run dead letters again, each as a new task. Prints the plan; add --yes to carry it out.

    It is safe to repeat: a dead letter is redriven only once.
    """
    choice = _choice(which or [], task_type, code, since, until, text)
    settings = cli.settings()
    settings.bootstrap()
    from streamtask.domain.model import now_ms
    from streamtask.redrive.run import read_plan

    plan = read_plan(settings, choice, now_ms())
    if plan.missing:
        raise ConfigError(f"No dead letter matches {', '.join(plan.missing[:5])}. List them: streamtask dead list")
    sent: list[tuple[Redrive, str]] = []
    failed: list[tuple[Redrive, str]] = []
    if not cli.json:
        _print_plan(cli, plan)
    if yes:
        _send(cli, settings, plan.ready, rate, sent, failed)
    left = len(plan.ready) - len(sent) - len(failed)
    if cli.json:
        cli.answer(_document(plan, sent, failed, yes=yes))
    elif not yes:
        if plan.ready:
            cli.note("Nothing was sent. Add --yes to send.")
    else:
        _print_done(cli, sent, failed, left)
    wrong = (yes and len(sent) < len(plan.ready)) or (choice.ids and plan.refused)
    return EXIT_BAD_ANSWER if wrong else None


def _choice(
    which: list[str], task_type: str | None, code: str | None, since: str | None, until: str | None, text: str | None
) -> Choice:
    """Raises ConfigError."""
    from streamtask.domain.model import ErrorCode, to_ms
    from streamtask.redrive import Choice

    codes = [known.value for known in ErrorCode]
    if code is not None and code not in codes:
        raise ConfigError(f"Unknown --code {code!r}. Use one of: {', '.join(codes)}.")
    start, end = moment("--since", since, past=True), moment("--until", until, past=True)
    choice = Choice(
        ids=frozenset(canonical(one) or one for one in which),
        task_type=task_type,
        code=code,
        since_ms=None if start is None else to_ms(start),
        until_ms=None if end is None else to_ms(end),
        text=text or None,
    )
    if choice.everything:
        raise ConfigError(
            "Choose the dead letters by id, --type, --code, --since, --until or --text (for all of them: --since 365d)."
        )
    return choice


def _send(
    cli: CommandContext,
    settings: Settings,
    items: list[Redrive],
    rate: float | None,
    sent: list[tuple[Redrive, str]],
    failed: list[tuple[Redrive, str]],
) -> None:
    """Appends to `sent` (with the origin of the new request) and to `failed` (with the reason)."""
    from streamtask.domain.identity import origin_text
    from streamtask.redrive.run import send

    bands = settings.topics.bands
    outcomes = send(settings.kafka_for("cli"), items, rate=rate)
    try:
        with closing(outcomes):
            for item, delivery in outcomes:
                if delivery.error is None:
                    sent.append((item, origin_text(bands[item.band].name, delivery.partition, delivery.offset)))
                else:
                    failed.append((item, delivery.error))
    except KeyboardInterrupt:
        cli.note(
            f"Stopped: sent {len(sent)} of {len(items)}. Repeat the command to send the rest; it skips those already sent."
        )
        raise


def _print_plan(cli: CommandContext, plan: Plan) -> None:
    console = cli.console()
    from rich.table import Table
    from rich.text import Text

    if plan.ready:
        kinds = Counter((item.task_type, item.letter.reason) for item in plan.ready)
        said = ", ".join(f"{count} {kind} ({code})" for (kind, code), count in kinds.most_common(SAMPLE))
        console.print(f"[bold]{len(plan.ready)} to redrive:[/] ", Text(said), soft_wrap=True, sep="")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("origin", "type", "code", "new task_id"):
            table.add_column(name, no_wrap=True)
        table.add_column("error", overflow="ellipsis", no_wrap=True, ratio=1)
        for item in plan.ready[:SAMPLE]:
            letter = item.letter
            wrong = Text(" ".join(letter.text.split()))
            table.add_row(letter.origin, Text(item.task_type), letter.reason, item.task_id, wrong)
        console.print(table)
        if len(plan.ready) > SAMPLE:
            console.print(f"… and {len(plan.ready) - SAMPLE} more")
        noted = [(item, note) for item in plan.ready for note in item.notes]
        for item, note in noted[:SAMPLE]:
            console.print("[blue]i[/]", Text(f"{item.letter.origin}: {note}"), soft_wrap=True)
        if len(noted) > SAMPLE:
            console.print(f"[blue]i[/] … and {len(noted) - SAMPLE} more notes")
    else:
        console.print("Nothing to redrive.")
    if plan.known:
        console.print(f"{len(plan.known)} skipped: already redriven.")
    if plan.refused:
        console.print(f"[yellow]{len(plan.refused)} cannot be redriven:[/]")
        for refusal in plan.refused[:SAMPLE]:
            console.print("[yellow]![/]", Text(_why(refusal)), soft_wrap=True)
        if len(plan.refused) > SAMPLE:
            console.print(f"… and {len(plan.refused) - SAMPLE} more; --json lists all of them")


def _print_done(
    cli: CommandContext, sent: list[tuple[Redrive, str]], failed: list[tuple[Redrive, str]], left: int
) -> None:
    from rich.text import Text

    console = cli.console()
    console.print(f"[green]✓[/] {len(sent)} redriven.")
    for item, error in failed[:SAMPLE]:
        console.print("[red]✗[/]", Text(f"{item.letter.origin}: {error}"), soft_wrap=True)
    if len(failed) > SAMPLE:
        console.print(f"[red]✗[/] … and {len(failed) - SAMPLE} more")
    if left:
        console.print(
            f"{left} not sent: Kafka does not accept them. Repeat the command later; it skips those already sent."
        )


def _why(refusal: Refusal) -> str:
    letter = refusal.letter
    return f"{letter.origin or f'letter {letter.partition}@{letter.offset}'} ({letter.reason}): {refusal.why}"


def _document(
    plan: Plan, sent: list[tuple[Redrive, str]], failed: list[tuple[Redrive, str]], *, yes: bool
) -> dict[str, Any]:
    placed = {item.task_id: origin for item, origin in sent}
    errors = {item.task_id: error for item, error in failed}

    def item(one: Redrive) -> dict[str, Any]:
        document: dict[str, Any] = {
            "task_id": one.task_id,
            "redrive_of": one.letter.task_id,
            "of": one.letter.origin,
            "task_type": one.task_type,
            "code": one.letter.reason,
            "notes": list(one.notes),
        }
        if one.task_id in placed:
            document["origin"] = placed[one.task_id]
        if one.task_id in errors:
            document["error"] = errors[one.task_id]
        return document

    return {
        "done": yes,
        "ready": len(plan.ready),
        "sent": len(sent),
        "failed": len(failed),
        "known": len(plan.known),
        "refused": len(plan.refused),
        "tasks": [item(one) for one in plan.ready[:DOCUMENTS_MAX]],
        "skipped": [item(one) for one in plan.known[:DOCUMENTS_MAX]],
        "cannot": [
            {"of": one.letter.origin, "redrive_of": one.letter.task_id, "code": one.letter.reason, "why": one.why}
            for one in plan.refused
        ],
    }
