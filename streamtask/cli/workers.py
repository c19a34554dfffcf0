"""Commands about the worker processes of a prefix: who is in the group, and out with one that is dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext, command, kafka_of
from streamtask.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamtask.kafka.admin import GroupMember


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    workers = typer.Typer(no_args_is_help=True, help="See the worker processes; take a dead one out of the group.")
    command(workers, "list")(workers_list)
    command(workers, "evict")(workers_evict)
    app.add_typer(workers, name="workers", rich_help_panel="Cluster")


def workers_list(cli: CommandContext) -> int | None:
    """List the members of the workers' group: client id, host, shards, member id."""
    settings = cli.settings()
    kafka = kafka_of(settings)
    from streamtask.kafka.admin import group_members

    state, members = group_members(kafka, settings.topics)
    if cli.json:
        found = [{**member._asdict(), "shards": list(member.shards)} for member in members]
        cli.answer({"group": settings.topics.group, "state": state, "workers": found})
        return None
    console = cli.console()
    if not members:
        console.print(f"No worker in group {settings.topics.group}.")
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
        typer.Argument(metavar="MEMBER", help="A member or client id, or how a member id starts.", show_default=False),
    ],
) -> int | None:
    """Remove a member from the group, so that its shards move now; exit code 1 when it had gone meanwhile.

    For a process that is dead or cut off. One that lives joins again at once, and what it was running may run twice.
    """
    settings = cli.settings()
    kafka = kafka_of(settings)
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
        cli.console().print(f"{chosen.member_id} had left already.", soft_wrap=True)
    return None if removed else EXIT_BAD_ANSWER


def _choose(text: str, members: Sequence[GroupMember], group: str) -> GroupMember:
    """The one that is meant. Raises ConfigError when there is none, or more than one."""
    found = [member for member in members if text in (member.member_id, member.client_id)]
    found = found or [member for member in members if text and member.member_id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{text!r} fits {len(found)} members of group {group}: give a whole member id.")
    raise ConfigError(f"No member {text!r} in group {group}. See: streamtask workers list")


def _ranges(shards: Sequence[int]) -> str:
    """0-3,7"""
    parts: list[list[int]] = []
    for shard in shards:
        if parts and parts[-1][-1] == shard - 1:
            parts[-1][1:] = [shard]
        else:
            parts.append([shard])
    return ",".join("-".join(map(str, part)) for part in parts)
