"""One `streamtask dev`: broker, topics, worker with reload and query service, from the first line to the last.

The thread of `run` starts and ends everything and decides; the other threads read lines, watch files, wait for processes
to end, and put what they saw into one queue. Always true:

- A reload first inspects the new code in a separate process. Code that cannot be imported changes nothing: the old worker
  continues, and the error is shown. Otherwise the new code takes over when the old worker has drained, which `grace_s`
  bounds; tasks that are still running then are handed over and start again as their next attempt.
- The first Ctrl-C, SIGTERM or SIGHUP ends everything in order: worker, service, broker; the second kills everything.
- Nothing outlives the session, however it ends: children end with it (die_with_parent), the broker by its guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from streamtask.config import SETTINGS_FILE, TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings, client_id
from streamtask.dev.child import Child
from streamtask.dev.follow import Follower
from streamtask.dev.place import Place, choose_port, short
from streamtask.dev.screen import Screen
from streamtask.dev.watch import Watch
from streamtask.devbroker.cluster import DevBroker
from streamtask.errors import ConfigError
from streamtask.kafka.admin import ensure_topics

KAFKA_PORT, SERVICE_PORT = 9_092, 8_080  # if they are free
LOOK_S = 60.0  # for importing the app
SPARE_S = 8.0  # added to the grace period, for handing over and leaving the group
STOP_S = 15.0  # for the service, whose own limit is 10 s
TICK_S = 1.0  # interval of checks that the broker is alive
AGAIN_S, AGAIN_MAX_S = 1.0, 30.0  # until a service that died is restarted
EXIT_FAILED, EXIT_KILLED = 1, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line options. bootstrap None: start a broker; ports None: the usual ones, if they are free."""

    app: str
    bootstrap: str | None = None
    prefix: str | None = None
    processes: int = 1
    kafka_port: int | None = None
    port: int | None = None
    grace_s: float = 2.0  # limit of a drain, at a reload and at the end
    keep: bool = False
    reload: bool = True
    folders: tuple[Path, ...] = ()


class Happened(NamedTuple):
    """kind: stop, changed, ended, told (a child reported that it is ready)."""

    kind: str
    child: Child | None = None
    what: Any = None


class Session:
    """`run` returns the exit code: 0 ended in order, 1 the broker died, 130 killed by a second signal.

    Before the session is running it raises ConfigError, DevBrokerUnavailable, Unreachable, or KeyboardInterrupt if stopped.
    """

    def __init__(self, options: Options, screen: Screen) -> None:
        self._options, self._screen = options, screen
        # Signal handlers put events too, which could deadlock on the lock of queue.Queue.
        self._happened: queue.SimpleQueue[Happened] = queue.SimpleQueue()  # bounded by what people and children do
        self._began_s = time.monotonic()
        self._stops = 0
        self._running = False
        self._kafka: DevBroker | None = None
        self._read_fd = -1
        self._bootstrap, self._url = "", ""
        self._data = Path()
        self._facts: dict[str, Any] = {}
        self._children: set[Child] = set()  # at most one of each kind, and those that are being killed
        self._look: Child | None = None
        self._look_until_s = 0.0
        self._good = True  # whether the newest code can be imported
        self._generation, self._worker_generation = 1, 0
        self._worker: Child | None = None
        self._worker_until_s: float | None = None  # set while it drains
        self._worker_began_s = self._began_s
        self._service: Child | None = None
        self._service_deaths = 0
        self._service_at_s: float | None = None
        self._waiting = {"worker", "service"}  # parts that have not been ready yet

    # --- Life ---------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        with contextlib.ExitStack() as held:
            held.enter_context(self._signals())
            self._read_fd = held.enter_context(_pipe())
            held.callback(self._kill_children)
            self._data = held.enter_context(Place(keep=self._options.keep)).data
            self._facts = self._first_look()
            if self._options.reload:
                folders = self._options.folders or (Path(),)
                held.enter_context(contextlib.closing(Watch(folders, lambda found: self._put("changed", what=found))))
            names = TopicNames(self._facts["prefix"])
            choose_port(self._options.port, SERVICE_PORT, "--port")  # refused before a broker is started
            kafka = self._open_kafka(held)
            ensure_topics(kafka, names, partitions=self._facts["partitions"])
            follower = held.enter_context(contextlib.closing(Follower(kafka, names, self._say_task)))
            port = choose_port(self._options.port, SERVICE_PORT, "--port")
            self._url = f"http://127.0.0.1:{port}"
            self._running = True
            self._tell_header()
            self._start_service()
            self._start_worker()
            code = self._loop()
            self._end()
            follower.close()
            return EXIT_KILLED if self._stops > 1 else code

    def _open_kafka(self, held: contextlib.ExitStack) -> KafkaSettings:
        """Start a broker, or use the one given by the options."""
        if self._options.bootstrap is not None:
            settings = load_settings(bootstrap_servers=self._options.bootstrap)
            self._bootstrap = settings.bootstrap()
            return settings.kafka_for("dev")
        port = choose_port(self._options.kafka_port, KAFKA_PORT, "--kafka-port")
        controller = choose_port(0, 0, "")
        self._screen.say("dev", "starting a local Apache Kafka (the first start downloads it, about 10 s)")
        self._kafka = DevBroker(directory=self._data / "kafka", ports=[port, controller])
        held.enter_context(self._kafka)
        self._bootstrap = self._kafka.bootstrap
        return KafkaSettings(self._bootstrap, client_id=client_id("dev"))  # own broker, without TLS or SASL

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stops += 1
        if self._stops > 1:
            self._kill_everything()
        elif self._running:
            self._put("stop")
        else:
            raise KeyboardInterrupt  # the stack of run() ends what has been started

    def _kill_everything(self) -> None:
        for child in tuple(self._children):
            child.kill()
        if self._kafka is not None:
            for node in self._kafka.nodes:
                if self._kafka.alive(node):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._kafka.pid(node), signal.SIGKILL)

    def _kill_children(self) -> None:
        """Kill the children that are left when the session ends for any reason."""
        for child in tuple(self._children):
            child.kill()
            child.process.wait()

    def _put(self, kind: str, child: Child | None = None, what: Any = None) -> None:
        self._happened.put(Happened(kind, child, what))

    # --- The loop -----------------------------------------------------------------------------------------------------

    def _loop(self) -> int:
        while True:
            self._step()
            if self._screen.broken:
                return EXIT_FAILED
            happened = self._next(TICK_S)
            if happened is None:
                if self._kafka is not None and not self._kafka.alive(1):
                    self._screen.say("kafka", "the broker died:\n" + self._kafka.log_tail(1, 1_000), level="error")
                    return EXIT_FAILED
            elif happened.kind == "stop":
                return 0
            elif happened.kind == "changed":
                self._changed(happened.what)
            elif happened.kind == "ended" and happened.child is not None:
                self._ended(happened.child)
            elif happened.kind == "told":
                self._reported(happened)

    def _next(self, wait_s: float) -> Happened | None:
        try:
            return self._happened.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _step(self) -> None:
        """Start and end the processes that are due."""
        now = time.monotonic()
        if self._look is not None and now > self._look_until_s:
            self._screen.say("app", f"importing it took longer than {LOOK_S:g} s; gave up", level="error")
            self._look.kill()
        if self._service is None and self._service_at_s is not None and now >= self._service_at_s:
            self._start_service()
        if self._worker_until_s is not None and now > self._worker_until_s and self._worker is not None:
            self._screen.say("worker", "did not drain in time; killed", level="warning")
            self._worker_until_s = None
            self._worker.kill()
        if self._look is not None or not self._good or self._worker_generation == self._generation:
            return
        if self._worker is None:
            self._start_worker()
        elif self._worker_until_s is None:
            self._drain_worker(now)

    def _drain_worker(self, now: float) -> None:
        assert self._worker is not None, "no worker to drain"
        self._worker_began_s = now
        self._worker_until_s = now + self._options.grace_s + SPARE_S
        self._worker.terminate()

    def _matters(self, file: str) -> bool:
        """Whether a change of this file may change what runs: it is a module of the app.

        Every file may in folders that were named, while the app cannot be imported (it may be the missing one), and while
        it is being imported (it may be a new import).
        """
        if self._options.folders or not self._good or self._look is not None or Path(file).name == SETTINGS_FILE:
            return True
        return os.path.realpath(file) in self._facts["modules"]

    def _changed(self, files: set[str]) -> None:
        files = {file for file in files if self._matters(file)}
        if not files:
            return
        named = ", ".join(short(Path(file)) for file in sorted(files)[:3])
        self._screen.say("dev", f"changed: {named}{' …' if len(files) > 3 else ''}")
        if self._look is not None:
            self._look.kill()  # it may have seen only half of the change
        self._look = self._start_look()

    def _ended(self, child: Child) -> None:
        self._children.discard(child)
        if child is self._look:
            self._look = None
            self._looked(child)
        elif child is self._worker:
            asked = self._worker_until_s is not None or self._worker_generation != self._generation
            self._worker = self._worker_until_s = None
            if not asked:
                self._screen.say("worker", f"exited with code {child.code}; restarts at the next change", level="error")
        elif child is self._service:
            self._service = None
            self._service_deaths += 1
            wait_s = min(AGAIN_MAX_S, AGAIN_S * 2 ** (self._service_deaths - 1))
            self._service_at_s = time.monotonic() + wait_s
            self._screen.say("service", f"exited with code {child.code}; restarts in {wait_s:g} s", level="error")

    def _looked(self, child: Child) -> None:
        facts = _answer(child)
        if "error" not in facts and facts["prefix"] != self._facts["prefix"]:
            why = f"the prefix is {facts['prefix']!r} now, not {self._facts['prefix']!r}: restart the session"
            facts = {"error": why, "trace": []}
        self._good = "error" not in facts
        if self._good:
            self._facts = facts
            self._generation += 1
            return
        self._say_wrong(facts)
        goes_on = "the old code keeps running" if self._worker is not None else "no worker runs"
        self._screen.say("dev", f"{goes_on} until it is fixed", level="warning")

    def _reported(self, happened: Happened) -> None:
        if happened.child is self._worker:
            part = "worker"
        elif happened.child is self._service:
            part = "service"
        else:
            return  # from a child that is being replaced
        if part == "service":
            self._service_deaths = 0
        first = bool(self._waiting)
        self._waiting.discard(part)
        tasks = ", ".join(task["name"] for task in self._facts["tasks"])
        if first and not self._waiting:
            took = time.monotonic() - self._began_s
            self._screen.say("dev", f"ready in {took:.1f} s: {tasks}", event="ready", seconds=round(took, 2))
        elif not first and part == "worker" and self._worker_began_s:
            took = time.monotonic() - self._worker_began_s
            self._screen.say("dev", f"reloaded in {took:.1f} s: {tasks}", event="reloaded", seconds=round(took, 2))
        if part == "worker":
            self._worker_began_s = 0.0

    # --- Children -----------------------------------------------------------------------------------------------------

    def _start(self, part: str, kind: str, instructions: Mapping[str, Any], *, answer: bool = False) -> Child:
        holder: list[Child] = []

        def on_line(line: str) -> None:
            event = self._screen.pass_on(part, line)
            if event is not None and event["event"] in ("shards_assigned", "service_ready") and holder:
                self._put("told", holder[0], event)

        child = Child(
            "streamtask.dev.part",
            [kind, json.dumps(instructions, default=str)],
            parent_fd=self._read_fd,
            on_line=on_line,
            on_end=lambda child: self._put("ended", child),
            answer=answer,
            # A Client that handlers open reaches this session too, and not a cluster from the environment.
            variables={
                name: value
                for name, value in (("STREAMTASK_BOOTSTRAP_SERVERS", self._bootstrap), ("STREAMTASK_URL", self._url))
                if value
            },
        )
        holder.append(child)
        self._children.add(child)
        return child

    def _overrides(self) -> dict[str, Any]:
        given = {"bootstrap_servers": self._bootstrap or self._options.bootstrap, "prefix": self._options.prefix}
        return {**{name: value for name, value in given.items() if value}, "drain_grace_s": self._options.grace_s}

    def _start_look(self) -> Child:
        self._look_until_s = time.monotonic() + LOOK_S
        return self._start("app", "look", {"app": self._options.app, "overrides": self._overrides()}, answer=True)

    def _start_worker(self) -> None:
        self._worker_generation = self._generation
        instructions = {
            "app": self._options.app,
            "processes": self._options.processes,
            "overrides": self._overrides(),
            "local": self._kafka is not None,
        }
        self._worker = self._start("worker", "worker", instructions)

    def _start_service(self) -> None:
        self._service_at_s = None
        overrides = {
            **self._overrides(),
            "prefix": self._facts["prefix"],
            "host": "127.0.0.1",
            "port": int(self._url.rsplit(":", 1)[1]),
            "store": str(self._data / "view.db"),
        }
        self._service = self._start("service", "service", {"overrides": overrides, "local": self._kafka is not None})

    def _first_look(self) -> dict[str, Any]:
        """The description of the app. Raises ConfigError, after printing the end of the traceback."""
        look = self._look = self._start_look()
        while (happened := self._next(max(0.0, self._look_until_s - time.monotonic()))) is not None:
            if happened.child is look:
                self._look = None
                self._children.discard(look)
                facts = _answer(look)
                if "error" not in facts:
                    return facts
                self._say_wrong({**facts, "error": ""})
                raise ConfigError(facts["error"])
        raise ConfigError(f"{self._options.app}: importing it took longer than {LOOK_S:g} s.")

    def _end(self) -> None:
        """End worker and service at the same time, then the broker, which both need."""
        self._running = False
        grace = f"running tasks get {self._options.grace_s:g} s" if self._worker is not None else "no worker runs"
        self._screen.say("dev", f"stopping: {grace}; press Ctrl-C again to stop at once")
        bounds = {self._worker: self._options.grace_s + SPARE_S, self._service: STOP_S, self._look: 0.0}
        now = time.monotonic()
        until = {child: now + bound for child, bound in bounds.items() if child is not None}
        for child in until:
            child.terminate()
        while until.keys() & self._children:
            happened = self._next(0.1)
            if happened is not None and happened.kind == "ended" and happened.child is not None:
                self._children.discard(happened.child)
            for child in until.keys() & self._children:
                if time.monotonic() > until[child]:
                    child.kill()
        self._screen.say("dev", "ended")

    # --- Output -------------------------------------------------------------------------------------------------------

    def _say_task(self, level: str, text: str) -> None:
        self._screen.say("task", text, level=level)

    def _say_wrong(self, facts: Mapping[str, Any]) -> None:
        if facts["error"]:
            self._screen.say("app", facts["error"], level="error", event="import_failed", trace=facts["trace"])
        for line in facts["trace"]:
            self._screen.say("app", f"  {line}", level="warning")

    def _tell_header(self) -> None:
        kept = f"data in {short(self._data)}" if self._options.keep else "its data is deleted on exit; --keep keeps it"
        kafka = f"{self._bootstrap}  ({kept if self._kafka is not None else 'not ours'})"
        tasks = [f"{task['name']}({task['parameters']})" for task in self._facts["tasks"]]
        named = ", ".join(map(str, self._options.folders))
        watched = f"Python files or streamtask.toml in {named}" if named else "streamtask.toml or a module of the app"
        rows = {
            "Kafka": kafka,
            "Service": f"{self._url}  (look up and submit tasks, follow events; {self._url}/docs)",
            "Tasks": ", ".join(tasks),
            "Reload": f"when {watched} {'change' if named else 'changes'}" if self._options.reload else "off",
        }
        needed = self._variables()
        if needed:
            rows["Elsewhere"] = f"export {' '.join(f'{name}={value}' for name, value in needed.items())}"
        rows["Try"] = self._example()
        rows["End"] = "Ctrl-C"
        self._screen.header(
            rows,
            {
                "bootstrap_servers": self._bootstrap,
                "url": self._url,
                "prefix": self._facts["prefix"],
                "tasks": [task["name"] for task in self._facts["tasks"]],
            },
        )

    def _variables(self) -> dict[str, str]:
        """The environment variables that commands in another terminal need, unless their settings say the same."""
        settings = load_settings()
        wanted = {"bootstrap_servers": self._bootstrap, "prefix": self._facts["prefix"], "url": self._url}
        return {
            f"STREAMTASK_{name.upper()}": value for name, value in wanted.items() if getattr(settings, name) != value
        }

    def _example(self) -> str:
        task = next((one for one in self._facts["tasks"] if one["sample"] is not None), self._facts["tasks"][0])
        sample = "'{…}'" if task["sample"] is None else f"'{json.dumps(task['sample'])}'" if task["sample"] else ""
        return " ".join(f"streamtask submit {task['name']} {sample} --wait".split("  "))


def _answer(look: Child) -> dict[str, Any]:
    """The result of an inspection; if there is none, how its process ended."""
    try:
        found = json.loads(look.said)
    except ValueError:
        return {"error": f"importing the app ended its process (code {look.code})", "trace": []}
    assert isinstance(found, dict), f"a look answered {found!r}"
    return found


@contextlib.contextmanager
def _pipe() -> Iterator[int]:
    """The read end of a pipe whose write end is open in this process only: it reaches its end when the process does."""
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd
    finally:
        os.close(write_fd)
        os.close(read_fd)


def run_dev(options: Options, *, as_json: bool = False) -> int:
    """Run the whole session; returns the exit code."""
    return Session(options, Screen(as_json=as_json)).run()
