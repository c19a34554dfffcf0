"""`streamtask schemas …`: show, check, register and export the schemas of the documents.

`check` needs neither a cluster nor a registry; with registry_url it also checks against the registry. Only `register`
changes the registry; `export` writes machine-readable documents to a directory.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext, command, group
from streamtask.errors import ConfigError

if TYPE_CHECKING:
    from streamtask.config import Settings
    from streamtask.schema_registry import Registry

RegistryOption = Annotated[
    str | None,
    typer.Option("--registry", metavar="URL", help="Schema registry. (env: STREAMTASK_REGISTRY_URL)"),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    schemas = group(help="Show, check, register and export the schemas of the messages.")
    command(schemas, "show")(schemas_show)
    command(schemas, "check")(schemas_check)
    command(schemas, "register")(schemas_register)
    command(schemas, "export")(schemas_export)
    app.add_typer(schemas, name="schemas", rich_help_panel="Cluster")


def schemas_show(
    cli: CommandContext,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="task_request, task_response or task_control.", show_default=False),
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", metavar="v1", help="A released version instead of the current schema.")
    ] = None,
    registry: RegistryOption = None,
) -> int | None:
    """List the schemas, or print one.

    Example: streamtask schemas show task_request > task_request.avsc
    """
    from streamtask.codec import schema

    if version is not None and version not in schema.versions():
        raise ConfigError(f"Unknown --version {version}. Released versions: {', '.join(schema.versions())}.")
    if name is not None:
        if name not in schema.names(version):
            raise ConfigError(f"Unknown schema {name!r}. Use one of: {', '.join(schema.names(version))}.")
        cli.answer(schema.text(name, version).rstrip("\n"))
        return None
    settings = cli.settings(registry_url=registry)
    rows = _rows(version) if not settings.registry_url else _rows_of(settings)
    if cli.json:
        cli.answer(rows)
        return None
    console = cli.console()
    for row in rows:
        console.print("  ".join(str(held) for held in row.values()), soft_wrap=True)
    return None


def schemas_check(cli: CommandContext, registry: RegistryOption = None) -> int | None:
    """Check that the schemas are compatible with every released version; exit code 1 if not."""
    from streamtask.codec import compatibility, schema

    settings = cli.settings(registry_url=registry)
    found: list[dict[str, str]] = []
    for version in schema.versions():
        for name in schema.names(version):
            old = schema.read(name, version)
            new = schema.read(name) if name in schema.names() else None
            texts = ["the schema was removed"] if new is None else []
            if new is not None:
                texts = [*compatibility.full(new, old), *compatibility.house(new, old)]
            found += [{"schema": name, "against": version, "what": text} for text in texts]
    against = len(schema.versions())
    if settings.registry_url:
        with closing(_registry(settings)) as held:
            found += _registry_findings(held, settings)
    if cli.json:
        cli.answer({"compatible": not found, "versions": list(schema.versions()), "findings": found})
    else:
        console = cli.console()
        for finding in found:
            text = f"[red]✗[/] {finding['schema']} against {finding['against']}: {finding['what']}"
            console.print(text, soft_wrap=True)
        if not found:
            where = f" and {settings.registry_url.split('@')[-1]}" if settings.registry_url else ""
            console.print(f"[green]✓[/] compatible with {against} released version(s){where}", soft_wrap=True)
    return EXIT_BAD_ANSWER if found else None


def schemas_register(
    cli: CommandContext,
    registry: RegistryOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be registered, and change nothing.",
        ),
    ] = False,
) -> int | None:
    """Register the schemas, one subject per topic, with FULL_TRANSITIVE compatibility."""
    from streamtask.schema_registry import subjects

    settings = cli.settings(registry_url=registry)
    rows: list[dict[str, Any]] = []
    with closing(_registry(settings)) as held:
        if dry_run:
            for topic, document in subjects.documents(settings.topics).items():
                subject = subjects.subject_of(topic)
                known = held.id_of(subject, subjects.text_of(document))
                rows.append({"subject": subject, "schema": document, "id": known, "new": known is None})
        else:
            for done in subjects.register(held, settings.topics):
                rows.append({"subject": done.subject, "schema": done.document, "id": done.schema_id, "new": done.new})
    if cli.json:
        cli.answer(rows)
        return None
    console = cli.console()
    for row in rows:
        verb = "would register" if dry_run and row["new"] else "registered" if row["new"] else "exists already"
        number = "" if row["id"] is None else f", id {row['id']}"
        console.print(f"[green]✓[/] {verb}: {row['subject']} ({row['schema']}{number})", soft_wrap=True)
    return None


def schemas_export(
    cli: CommandContext,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output directory; created if missing.", show_default=False)
    ],
) -> int | None:
    """Write machine-readable documents: JSON Schemas, AsyncAPI (topics), OpenAPI (query service).

    Example: streamtask schemas export contract
    """
    settings = cli.settings()
    try:
        from streamtask.cli.export import SERVICE, documents
    except ImportError as error:
        raise ConfigError(
            f"Exporting OpenAPI needs {error.name}. Install it: pip install 'streamtask-kafka[server]'."
        ) from None
    broker = (settings.bootstrap_servers or "127.0.0.1:9092").split(",")[0].strip()
    service = (settings.url or f"http://{SERVICE}").partition("://")[2].partition("/")[0]
    made = documents(settings.topics, kafka=broker, service=service)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot write to {directory} ({error.strerror or error}). Choose another directory."
        ) from None
    if cli.json:
        cli.answer({"directory": str(directory), "files": sorted(made)})
        return None
    console = cli.console()
    for name in sorted(made):
        console.print(f"[green]✓[/] {directory / name}", soft_wrap=True)
    return None


def _registry(settings: Settings) -> Registry:
    from streamtask.schema_registry import open_registry

    if not settings.registry_url:
        raise ConfigError("No schema registry is configured. Set STREAMTASK_REGISTRY_URL or pass --registry URL.")
    return open_registry(settings.registry_url, settings.registry)


def _rows(version: str | None) -> list[dict[str, Any]]:
    from streamtask.codec import avro, schema

    return [
        {
            "schema": name,
            "fingerprint": avro.fingerprint_of(schema.read(name, version)).hex(),
            "version": avro.known()[avro.fingerprint_of(schema.read(name, version))].version,
        }
        for name in schema.names(version)
    ]


def _rows_of(settings: Settings) -> list[dict[str, Any]]:
    """What the registry has for streamtask's subjects, as rows."""
    from streamtask.schema_registry import subjects

    rows: list[dict[str, Any]] = []
    with closing(_registry(settings)) as held:
        for topic, document in subjects.documents(settings.topics).items():
            subject = subjects.subject_of(topic)
            current = held.id_of(subject, subjects.text_of(document))
            for version in held.versions(subject):
                mark = "current" if version.schema_id == current else "other"
                rows.append({"subject": subject, "version": version.number, "id": version.schema_id, "what": mark})
            if current is None:
                rows.append(
                    {"subject": subject, "version": None, "id": None, "what": "current schema is not registered"}
                )
    return rows


def _registry_findings(registry: Registry, settings: Settings) -> list[dict[str, str]]:
    """The registry's objections to the schemas, and those of streamtask's own rules to the registered versions."""
    import json

    from streamtask.codec import compatibility
    from streamtask.schema_registry import subjects

    found: list[dict[str, str]] = []
    for topic, document in subjects.documents(settings.topics).items():
        subject, text = subjects.subject_of(topic), subjects.text_of(document)
        versions = registry.versions(subject)
        before = len(found)
        for version in versions:
            try:
                lines = compatibility.full(json.loads(text), json.loads(version.text))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                lines = [f"the registered schema is not a valid Avro schema ({error})"]
            where = f"{subject} version {version.number}"
            found += [{"schema": document, "against": where, "what": line} for line in lines]
        if versions and len(found) == before and registry.id_of(subject, text) is None:
            found += [
                {"schema": document, "against": subject, "what": line} for line in registry.compatible(subject, text)
            ]
    return found
