"""Commands about the worker processes of a prefix: list the group's members, evict a dead one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext, command, group
from streamtask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamtask.kafka.admin_session import GroupMember


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    workers = group(help="List worker processes, and evict dead ones from the group.")
    command(workers, "list")(workers_list)
    command(workers, "evict")(workers_evict)
    app.add_typer(workers, name="workers", rich_help_panel="Cluster")


def workers_list(cli: CommandContext) -> int | None:
    """List the worker processes in the consumer group, with their hosts and shards."""
    settings = cli.settings()
    kafka = settings.kafka_for("cli")
    from streamtask.kafka.admin import group_members

    state, members = group_members(kafka, settings.topics)
    if cli.json:
        found = [{**member._asdict(), "shards": list(member.shards)} for member in members]
        cli.answer({"group": settings.topics.group, "state": state, "workers": found})
        return None
    console = cli.console()
    if not members:
        console.print(f"No workers in group {settings.topics.group}.")
        return None
    from rich.table import Table

    table = Table("Client id", "Host", "Shards", "Member", box=None, pad_edge=False)
    for member in members:
        table.add_row(member.client_id, member.host, _ranges(member.shards) or "-", member.member_id)
    console.print(table)
    if state != "stable":
        console.print(f"The group is {state}: shards are moving.")
    return None


def workers_evict(
    cli: CommandContext,
    member: Annotated[
        str,
        typer.Argument(metavar="MEMBER", help="Member id, client id, or the start of a member id.", show_default=False),
    ],
) -> int | None:
    """Remove a worker from the group so that its shards move now; exit code 1 if it had already left.

    Use it for a process that is dead or cut off. A live process rejoins at once, and the tasks it was running may run twice.
    """
    settings = cli.settings()
    kafka = settings.kafka_for("cli")
    from streamtask.kafka.admin import group_members
    from streamtask.worker.failover import remove_members

    _, members = group_members(kafka, settings.topics)
    chosen = _choose(member, members, settings.topics.group)
    known = remove_members(kafka, settings.topics.group, [chosen.member_id], reason="evicted by an operator")
    removed = known.get(chosen.member_id, False)
    if cli.json:
        cli.answer({"member_id": chosen.member_id, "shards": list(chosen.shards), "removed": removed})
    elif removed:
        shards = f"its shards {_ranges(chosen.shards)} move now" if chosen.shards else "it had no shards"
        cli.console().print(f"[green]✓[/] removed {chosen.member_id}: {shards}", soft_wrap=True)
    else:
        cli.console().print(f"{chosen.member_id} had already left.", soft_wrap=True)
    return None if removed else EXIT_BAD_ANSWER


def _choose(text: str, members: Sequence[GroupMember], group: str) -> GroupMember:
    """The group member that `text` names. Raises ConfigError when none matches, or several do."""
    found = [member for member in members if text in (member.member_id, member.client_id)]
    found = found or [member for member in members if text and member.member_id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{text!r} matches {len(found)} members of group {group}. Give a full member id.")
    raise ConfigError(f"No member {text!r} in group {group}. List them: streamtask workers list")


def _ranges(shards: Sequence[int]) -> str:
    """The numbers as text, like 0-3,7."""
    parts: list[list[int]] = []
    for shard in shards:
        if parts and parts[-1][-1] == shard - 1:
            parts[-1][1:] = [shard]
        else:
            parts.append([shard])
    return ",".join("-".join(map(str, part)) for part in parts)
