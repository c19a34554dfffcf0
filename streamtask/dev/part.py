"""What runs in the child processes of a session: `python -m streamtask.dev.part KIND JSON`.

    look     import the app once and describe it, or what is wrong with it (as JSON on stdout, which has nothing else)
    worker   `streamtask worker` with the session's overrides
    service  `streamtask serve` with the same overrides

Each ends with its session (die_with_parent). Its instructions are JSON: app, processes, overrides of settings, and
`local`: the broker is the session's own and speaks plain text, whatever security the settings require for another one.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamtask.errors import ConfigError, StreamtaskError
from streamtask.execution.parent_watch import die_with_parent
from streamtask.observability import event_log

if TYPE_CHECKING:
    from streamtask.app import App
    from streamtask.handlers.registry import Handler

EXIT_FAILED, EXIT_CONFIG = 1, 2
TRACE_LINES_MAX = 8
_SAMPLES: dict[Any, Any] = {str: "text", int: 1, float: 1.0, bool: True}


def look(told: dict[str, Any]) -> dict[str, Any]:
    """Describes the app: name, prefix, partitions, its tasks, and the files of its modules below this folder.

    {"error", "trace"} when it cannot be loaded.
    """
    from streamtask.app import load_app

    try:
        app = load_app(told["app"])
        settings = app.configure(**told["overrides"])
        if not app.registry:
            raise ConfigError(f"app {app.name!r} has no tasks. Decorate a function with @app.task.")
    except ConfigError as error:
        return {"error": " ".join(str(error).split()), "trace": last_lines(error.__cause__)}
    except BaseException as error:  # noqa: BLE001 - a module that calls sys.exit() is reported like any other failure
        said = " ".join(repr(error).split())
        return {"error": f"{told['app']}: importing it ended with {said}", "trace": last_lines(error)}
    tasks = [_task(handler) for handler in app.registry.values()]
    return {
        "name": app.name,
        "prefix": settings.prefix,
        "partitions": settings.partitions,
        "tasks": tasks,
        "modules": _modules(Path.cwd()),
    }


def _modules(folder: Path) -> list[str]:
    """The files of the modules that have been imported from this folder, without symbolic links."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    found = {Path(os.path.realpath(file)) for file in files if file}
    return sorted(str(file) for file in found if file.is_relative_to(os.path.realpath(folder)))


def last_lines(error: BaseException | None) -> list[str]:
    """The end of the traceback, starting with the user's own code."""
    if error is None:
        return []
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and not frame.filename.startswith(_HERE)]
    text = "".join([*traceback.format_list(own), *traceback.format_exception_only(error)])
    return [line for line in text.splitlines() if line.strip()][-TRACE_LINES_MAX:]


_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _task(handler: Handler) -> dict[str, Any]:
    """Its name, its parameters as text, and a sample of them if one can be made."""
    arguments = list(inspect.signature(handler.function).parameters.values())[handler.takes_context :]
    names = {"str": str, "int": int, "float": float, "bool": bool}
    sample: dict[str, Any] | None = {}
    for argument in arguments:
        kind = names.get(argument.annotation, argument.annotation)
        if argument.default is not inspect.Parameter.empty:
            continue
        if sample is None or not isinstance(kind, type) or kind not in _SAMPLES:
            sample = None
        else:
            sample[argument.name] = _SAMPLES[kind]
    return {"name": handler.name, "parameters": ", ".join(map(_argument, arguments)), "sample": sample}


def _argument(argument: inspect.Parameter) -> str:
    """As in source code: `name: str = 'x'`."""
    kind = argument.annotation
    text = argument.name
    if kind is not inspect.Parameter.empty:
        text += f": {kind if isinstance(kind, str) else inspect.formatannotation(kind)}"
    return text if argument.default is inspect.Parameter.empty else f"{text} = {argument.default!r}"


def worker(told: dict[str, Any]) -> int:
    """Run until stopped by a signal."""
    from streamtask.app import load_app
    from streamtask.worker.process import supervise

    overrides = {**told["overrides"], "processes": told["processes"]}
    if told["local"]:
        overrides |= _plain(load_app(told["app"]))
    return supervise(told["app"], overrides)


def _plain(app: App) -> dict[str, Any]:
    kafka = app.settings.kafka
    return {"kafka": {**kafka, "security.protocol": "PLAINTEXT"}} if kafka.get("security.protocol") else {}


def service(told: dict[str, Any]) -> int:
    """Serve until stopped by a signal; prints its address as events."""
    from streamtask.config import load_settings
    from streamtask.query_service.server import run

    settings = load_settings(**told["overrides"])
    if told["local"] and settings.kafka.get("security.protocol"):
        plain = {**settings.kafka, "security.protocol": "PLAINTEXT"}
        settings = load_settings(**{**told["overrides"], "kafka": plain})
    run(settings, say=lambda text: _say("service_ready" if text.startswith("ready") else "service_listening"))
    return 0


def _say(event: str) -> None:
    sys.stderr.write(json.dumps({"event": event, "level": "info"}) + "\n")
    sys.stderr.flush()


def main(argv: list[str]) -> int:
    """The entry point of the child process."""
    die_with_parent()
    kind, text = argv
    told = json.loads(text)
    if kind == "look":
        answer = os.fdopen(os.dup(1), "w")  # what the user's module prints goes to stderr
        os.dup2(2, 1)
        answer.write(json.dumps(look(told)))
        answer.close()
        return 0
    event_log.configure(json=True)
    try:
        return {"worker": worker, "service": service}[kind](told)
    except StreamtaskError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
