"""What all commands share: common options, output, errors.

Answers go to stdout, everything else to stderr. An error is one line with a hint, with exit code 2; Ctrl-C gives 130. A
stack trace appears only with --debug. A command returns its exit code (None means 0); 1 means that it did its work and
the answer is negative (a task failed, an audit found violations).

This module imports nothing heavy, because `streamtask --help` must be fast.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from streamtask import __version__
from streamtask.errors import (
    ConfigError,
    DevBrokerUnavailable,
    RegistryUnreachable,
    StreamtaskError,
    SubmitError,
    TopicsMissing,
    UnknownTask,
    Unreachable,
    WaitTimeout,
)

if TYPE_CHECKING:
    from rich.console import Console

    from streamtask.config import Settings

EXIT_BAD_ANSWER = 1  # the command did its work; the answer is negative
EXIT_ERROR = 2  # the command could not do its work
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the convention of shells
CREATE_TOPICS = "streamtask topics create"

# (error class, words of which the message may already contain one, hint): a hint that repeats the message is left out.
HINTS: tuple[tuple[type[StreamtaskError], tuple[str, ...], str], ...] = (
    (TopicsMissing, ("topics create",), f"Create them: {CREATE_TOPICS}"),
    (RegistryUnreachable, ("registry_url",), "Check that it is running and that registry_url is right."),
    (
        Unreachable,
        ("--bootstrap", "--url"),
        "Check that it is running and that --bootstrap and the security settings are right.",
    ),
    (SubmitError, ("task_id",), "The broker may have stored it: submit it again with the same --task-id."),
    (WaitTimeout, ("streamtask watch",), "Keep waiting: streamtask watch TASK_ID"),
    (UnknownTask, ("--prefix",), "Check the id and --prefix. Tasks older than the retention of their topics are gone."),
    (DevBrokerUnavailable, ("--bootstrap",), "Or use a running broker: --bootstrap HOST:PORT"),
)


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The options that every command has, as given (None: not given), and methods for its output."""

    bootstrap: str | None = None
    prefix: str | None = None
    url: str | None = None
    api_key: str | None = None
    json: bool = False
    debug: bool = False

    def settings(self, **more: Any) -> Settings:
        """The settings from options, then environment, then streamtask.toml, then defaults. Raises ConfigError."""
        from streamtask.config import load_settings

        return load_settings(
            bootstrap_servers=self.bootstrap, prefix=self.prefix, url=self.url, api_key=self.api_key, **more
        )

    def over(self, outer: CommandContext) -> CommandContext:
        """These options; for those that were not given, the ones given before the command."""
        return CommandContext(
            bootstrap=self.bootstrap or outer.bootstrap,
            prefix=self.prefix or outer.prefix,
            url=self.url or outer.url,
            api_key=self.api_key or outer.api_key,
            json=self.json or outer.json,
            debug=self.debug or outer.debug,
        )

    def answer(self, document: Any) -> None:
        """Write one JSON document on one line of stdout."""
        if hasattr(document, "to_json"):
            document = document.to_json()
        text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, default=str)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def console(self) -> Console:
        """The console for people, on stdout."""
        from rich.console import Console

        return Console(highlight=False)

    def note(self, text: str) -> None:
        """Write a remark to stderr, so that it never gets into a pipe with the answer."""
        typer.echo(text, err=True)


_PANEL = "Connection and output"
GLOBAL_OPTIONS: Mapping[str, Any] = {
    "bootstrap": Annotated[
        str | None,
        typer.Option(
            "--bootstrap",
            metavar="HOST:PORT",
            help="Kafka brokers, comma separated. (env: STREAMTASK_BOOTSTRAP_SERVERS)",
            rich_help_panel=_PANEL,
        ),
    ],
    "prefix": Annotated[
        str | None,
        typer.Option("--prefix", metavar="NAME", help="Topic name prefix. (default: tasks)", rich_help_panel=_PANEL),
    ],
    "url": Annotated[
        str | None,
        typer.Option(
            "--url", metavar="URL", help="Query service to use. (env: STREAMTASK_URL)", rich_help_panel=_PANEL
        ),
    ],
    "api_key": Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="API key of the query service. (env: STREAMTASK_API_KEY)",
            rich_help_panel=_PANEL,
        ),
    ],
    "json": Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the answer as one line of JSON.",
            rich_help_panel=_PANEL,
        ),
    ],
    "debug": Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Print the stack trace of an error.",
            rich_help_panel=_PANEL,
        ),
    ],
}


def _with_options(function: Callable[..., Any], own: list[inspect.Parameter]) -> Callable[..., Any]:
    """`function` with a signature for typer: a context, its own parameters, the options of the CommandContext."""
    shared = []
    for option, hint in GLOBAL_OPTIONS.items():
        default = False if typing.get_args(hint)[0] is bool else None
        shared.append(inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *own, *shared]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def command(app: typer.Typer, name: str, **how: Any) -> Callable[[Callable[..., int | None]], Callable[..., Any]]:
    """Register a command. Its first parameter is the CommandContext, whose options are added to its own."""

    def register(function: Callable[..., int | None]) -> Callable[..., Any]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]

        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> int:
            cli = CommandContext(**{option: values.pop(option) for option in GLOBAL_OPTIONS})
            cli = cli.over(ctx.find_object(CommandContext) or CommandContext())
            return guarded(functools.partial(function, cli, **values), debug=cli.debug, bootstrap=cli.bootstrap)

        del run.__wrapped__  # typer must read the new signature, not the function's own
        app.command(name, cls=PlainCommand, **how)(
            _with_options(run, [p.replace(annotation=hints[p.name]) for p in own])
        )
        return function

    return register


def accept_options_before_the_command(app: typer.Typer) -> None:
    """Makes `streamtask --prefix x list` the same as `streamtask list --prefix x`."""

    def remember(ctx: typer.Context, *, version: bool = False, **values: Any) -> None:
        ctx.obj = CommandContext(**values)

    version = inspect.Parameter(
        "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, VERSION_OPTION]
    )
    app.callback()(_with_options(remember, [version]))


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamtask {__version__}")
        raise typer.Exit


VERSION_OPTION: Any = typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version and exit.")


def guarded(work: Callable[[], int | None], *, debug: bool, bootstrap: str | None = None) -> int:
    """Run `work` and return its exit code; an error becomes one line on stderr.

    bootstrap  as given on the command line: a command that the error advises needs it too
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout (head, less) has closed it; the interpreter must not try to flush it at exit.
        sys.stdout = None
        return EXIT_BAD_ANSWER
    except Exception as error:  # noqa: BLE001 - the last resort: any error becomes one line and exit code 2
        if debug:
            traceback.print_exc()
        else:
            text = one_line(error)
            if bootstrap and isinstance(error, TopicsMissing):
                text = text.replace(CREATE_TOPICS, f"{CREATE_TOPICS} --bootstrap {bootstrap}")
            typer.echo(f"Error: {text}", err=True)
        return EXIT_ERROR


def one_line(error: BaseException) -> str:
    """What happened and what to do, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, StreamtaskError):
        return f"{type(error).__name__}: {text} (add --debug for the stack trace)"
    for kind, words, hint in HINTS:
        if isinstance(error, kind) and not any(word in text for word in words):
            return f"{text.rstrip('.')}. {hint}"
    return text


def _without_types(parameters: list[Any]) -> list[Any]:
    """Leave out `<bool>` of flags and `<str>` of arguments in the help: the names say it."""
    for parameter in parameters:
        if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
            parameter.display_type_rich = lambda ctx: None
    return parameters


class PlainCommand(TyperCommand):
    """A command whose help names no Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose help names no Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


def group(*, help: str) -> typer.Typer:
    """A group of commands, which prints its help when no command is named."""
    return typer.Typer(cls=PlainGroup, no_args_is_help=True, help=help)


class OneLineGroup(PlainGroup):
    """The root of the command line. It also prints usage errors on one line, and uses a command's int as the exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(
                args=args,
                prog_name=prog_name or "streamtask",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except Exception as error:  # noqa: BLE001 - an error that is not a usage error is raised again there
            code = self._usage_error(error)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)

    @staticmethod
    def _usage_error(error: Exception) -> int:
        say = getattr(error, "format_message", None)
        if say is None:
            if isinstance(error, typer.Abort):
                return EXIT_INTERRUPTED
            raise error
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "streamtask"
        if type(error).__name__ == "NoArgsIsHelpError":
            pass  # the help was printed when the error was created
        else:
            typer.echo(f"Error: {' '.join(say().split())} See: {path} --help", err=True)
        return EXIT_ERROR


def parse_json_object(text: str, *, what: str) -> dict[str, Any] | None:
    """The JSON object in an argument; `-` reads stdin, `@file` a file, "" means none. Raises ConfigError."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{what}: cannot read {text[1:]} ({error}). Check the path.") from None
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'{what} is not JSON: {error}. Quote it for the shell: \'{{"path": "a.txt"}}\'') from None
    if not isinstance(value, dict):
        raise ConfigError(f'{what} must be a JSON object, like {{"path": "a.txt"}}, not {type(value).__name__}.')
    return value
