"""A real Apache Kafka on this machine, from pip alone: one broker or a small KRaft cluster.

    with DevBroker() as kafka:
        Producer({"bootstrap.servers": kafka.bootstrap})

    python -m streamtask.devbroker --brokers 3 --port 19092 --dir data     # runs until Ctrl-C or SIGTERM

For development, the demo and the tests. It owns the data directories and the broker processes. Always true:

- It uses neither Java nor Docker from PATH, and no network once everything is cached (jars.py).
- No broker outlives the process that started it, even when that is killed with SIGKILL (_Guard).
- A given directory is kept and can be started again; without one the data is temporary.

Needs the extra `dev-broker`.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamtask.devbroker.jars import (
    ALTERNATIVES,
    KAFKA_VERSION,
    cache_directory,
    jars,
    java,
    java_environment,
    sole_user,
)
from streamtask.errors import DevBrokerUnavailable

START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 10.0  # an idle machine needs 3 s and 0.6 s; the rest is for a loaded one

# Small enough for a laptop; DevBroker(config=…) overrides any of them.
DEFAULTS: Mapping[str, str] = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": str(2 << 20),  # the default reserves 128 MiB of heap
    "log.index.size.max.bytes": str(1 << 20),
    "num.io.threads": "4",
    "num.network.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    # A restarted broker first waits until its previous session has been fenced: 3 s instead of Kafka's 9.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
}

# For tests that wait for the broker to notice something: shorter times, otherwise the same behaviour.
QUICK: Mapping[str, str] = {
    # an abandoned transaction is aborted 0.5 s after its own timeout, not 10 s
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "group.min.session.timeout.ms": "500",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "1500",
    "group.consumer.min.heartbeat.interval.ms": "300",
    "group.consumer.heartbeat.interval.ms": "400",
    "log.cleaner.backoff.ms": "200",
    "log.retention.check.interval.ms": "1000",
    "log.initial.task.delay.ms": "500",
    "log.segment.delete.delay.ms": "100",
}

PORT_TAKEN = "BindException"
STARTED = b"Kafka Server started"
LOG4J = """\
rootLogger.level=WARN
logger.started.name=kafka.server.KafkaRaftServer
logger.started.level=INFO
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ABSOLUTE} %p %c{1} - %m%n
"""

# --- Brokers end with this process ------------------------------------------------------------------------------------


class _Guard:
    """A small process that kills the brokers when the pipe from this process breaks, however this process ended.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started the child ends, and exists on Linux only.
    """

    SOURCE = (
        "import os, signal, sys\n"
        "pids = set()\n"
        "for line in sys.stdin:\n"
        "    (pids.add if line[0] == '+' else pids.discard)(int(line[1:]))\n"
        "for pid in pids:\n"
        "    try: os.kill(pid, signal.SIGKILL)\n"
        "    except ProcessLookupError: pass\n"
    )

    def __init__(self) -> None:
        # In its own session: Ctrl-C in the terminal ends this process, and only then the guard acts.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self.SOURCE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def tell(self, sign: str, pid: int) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{sign}{pid}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


# --- The brokers ------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports that are free now; another process may take one before it is used."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class DevBroker:
    """Apache Kafka on 127.0.0.1; every node (1, 2, …) is broker and controller.

    directory  kept when given; otherwise temporary
    ports      the nodes' client ports, then their controller ports; by default free ones
    config     broker settings that override DEFAULTS, e.g. QUICK
    heap       of each node, as in Java's -Xmx

    Use `with`, or open() and close(). Raises DevBrokerUnavailable when Kafka cannot run here.
    """

    def __init__(
        self,
        brokers: int = 1,
        directory: str | os.PathLike[str] | None = None,
        ports: Sequence[int] | None = None,
        config: Mapping[str, str] | None = None,
        *,
        heap: str = "256m",
    ) -> None:
        assert brokers >= 1, f"{brokers} brokers?"
        assert ports is None or len(ports) == 2 * brokers, f"{brokers} brokers need {2 * brokers} ports: {ports}"
        self.nodes = tuple(range(1, brokers + 1))
        self.heap = heap
        self.config = dict(config or {})
        self._given_ports = None if ports is None else list(ports)
        self._temporary = directory is None
        self._directory = None if directory is None else Path(directory).resolve()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[int, int] = {}  # where in its log a node's last start begins
        self._guard: _Guard | None = None
        self._classpath = ""
        self._ports: list[int] = []
        self._cluster_id = ""

    @property
    def directory(self) -> Path:
        """Settings, data and logs (`broker<N>.log`) of the nodes."""
        assert self._directory is not None, "not started"
        return self._directory

    @property
    def bootstrap(self) -> str:
        """`bootstrap.servers` for clients."""
        return ",".join(f"127.0.0.1:{self.port(node)}" for node in self.nodes)

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    def port(self, node: int) -> int:
        """The client port of a node."""
        return self._ports[node - 1]

    def pid(self, node: int) -> int:
        return self._processes[node].pid

    def log_tail(self, node: int, characters: int = 2_000) -> str:
        """The end of a node's log."""
        path = self.directory / f"broker{node}.log"
        return path.read_text(errors="replace")[-characters:] if path.exists() else ""

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> DevBroker:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Start every node and wait until all accept connections. Retries once when a free port was taken."""
        assert self._guard is None, "already started"
        self._classpath = os.pathsep.join(map(str, jars()))
        self._directory = self._directory or Path(tempfile.mkdtemp(prefix="streamtask-kafka-"))
        self._guard = _Guard()
        atexit.register(self.close)
        try:
            try:
                self._open_once()
            except DevBrokerUnavailable as error:
                if self._given_ports is not None or PORT_TAKEN not in str(error):
                    raise
                self._end_processes()
                self._open_once()
        except BaseException:
            self.close()
            raise

    def _open_once(self) -> None:
        self._ports = self._given_ports or free_ports(2 * len(self.nodes))
        self._write_files()
        for node in self.nodes:
            self._launch(node)
        for node in self.nodes:
            self._await(node)

    def close(self) -> None:
        """Stop every node, including frozen ones, and delete temporary data. May be called twice."""
        atexit.unregister(self.close)
        self._end_processes()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._temporary and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _end_processes(self) -> None:
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            if self._temporary:
                process.kill()  # its data is not read again; an orderly stop of three nodes takes 6 s
            else:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:  # a controller waits for a quorum that is gone
                process.kill()
                process.wait()
        for process in self._processes.values():
            self._forget(process.pid)
        self._processes.clear()

    def start(self, node: int) -> None:
        """Start a node that was stopped or killed, on its old port and data; returns when it accepts connections."""
        assert node not in self._processes, f"node {node} runs"
        self._launch(node)
        self._await(node)

    def stop(self, node: int) -> None:
        """Stop a node in order (SIGTERM)."""
        self._processes[node].send_signal(signal.SIGCONT)
        self._processes[node].terminate()
        self._reap(node)

    def kill(self, node: int) -> None:
        """Kill a node (SIGKILL)."""
        self._processes[node].kill()
        self._reap(node)

    def freeze(self, node: int) -> None:
        """Suspend a running node, connections open, like a machine that hangs; returns when its last thread has stopped."""
        self._processes[node].send_signal(signal.SIGSTOP)
        os.waitpid(self._processes[node].pid, os.WUNTRACED)

    def thaw(self, node: int) -> None:
        """Resume a frozen node."""
        self._processes[node].send_signal(signal.SIGCONT)

    def alive(self, node: int) -> bool:
        """False when it was stopped, killed, or died."""
        process = self._processes.get(node)
        return process is not None and process.poll() is None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _launch(self, node: int) -> None:
        assert self._guard is not None, "not started"
        with (self.directory / f"broker{node}.log").open("ab") as log:
            self._log_starts[node] = log.tell()
            try:
                process = subprocess.Popen(
                    self.command(node),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=java_environment(),
                    start_new_session=True,  # Ctrl-C is handled here, and then stops the brokers in order
                )
            except OSError as error:
                raise DevBrokerUnavailable(f"Java cannot be started: {error}. {ALTERNATIVES}") from None
        self._processes[node] = process
        self._guard.tell("+", process.pid)

    def _await(self, node: int) -> None:
        """Wait until the node logs that it is up. An open port would not do: another process may have taken it."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.alive(node):
            if STARTED in self._said(node):
                return
            time.sleep(0.02)
        reason = "exited" if not self.alive(node) else f"was not up within {START_TIMEOUT_S:g} s"
        tail = self.log_tail(node)
        raise DevBrokerUnavailable(f"Kafka node {node} {reason}. The end of its log:\n{tail}\n{ALTERNATIVES}")

    def _said(self, node: int) -> bytes:
        """What a node has logged since its last start."""
        with (self.directory / f"broker{node}.log").open("rb") as log:
            log.seek(self._log_starts[node])
            return log.read()

    def _reap(self, node: int) -> None:
        process = self._processes[node]
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        del self._processes[node]
        self._forget(process.pid)

    def _forget(self, pid: int) -> None:
        """Remove the pid from the guard: the system may now give it to another process, which must not be killed."""
        if self._guard is not None:
            self._guard.tell("-", pid)

    def command(self, node: int) -> list[str]:
        """The command line of a node."""
        flags = [
            f"-Xmx{self.heap}",
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "--sun-misc-unsafe-memory-access=allow",  # both silence warnings of JDK 25 about Kafka's own libraries
            "--enable-native-access=ALL-UNNAMED",
        ]
        cache = aot_cache()
        if cache.exists():  # Java ignores one of another JDK or class path
            flags += [f"-XX:AOTCache={cache}", "-Xlog:aot*=off", "-Xlog:cds*=off"]
        return self._java(flags, "kafka.Kafka", str(self.directory / f"server{node}.properties"))

    def _java(self, flags: Sequence[str], *arguments: str) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={(self.directory / 'log4j2.properties').as_uri()}"
        return [str(java()), *flags, log4j, "-cp", self._classpath, *arguments]

    def properties(self, node: int) -> dict[str, str]:
        """server.properties of a node."""
        count = len(self.nodes)
        replicas, in_sync = str(min(3, count)), str(min(2, count))
        controllers = dict(zip(self.nodes, self._ports[count:], strict=True))
        return {
            "process.roles": "broker,controller",
            "node.id": str(node),
            "controller.quorum.voters": ",".join(f"{one}@127.0.0.1:{port}" for one, port in controllers.items()),
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port(node)},CONTROLLER://127.0.0.1:{controllers[node]}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port(node)}",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": (self.directory / f"data{node}").as_posix(),
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
            **DEFAULTS,
            **self.config,
        }

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.properties").write_text(LOG4J)
        cluster = self.directory / "cluster.id"
        if not cluster.exists():
            cluster.write_text(_new_cluster_id())
        self._cluster_id = cluster.read_text()
        for node in self.nodes:
            _write_properties(self.directory / f"server{node}.properties", self.properties(node))
            data = self.directory / f"data{node}"
            data.mkdir(exist_ok=True)
            meta = data / "meta.properties"
            if not meta.exists():
                shutil.copy(self._checkpoint(), data / "bootstrap.checkpoint")
                meta.write_text(f"version=1\nnode.id={node}\ncluster.id={self._cluster_id}\n")

    def _checkpoint(self) -> Path:
        """The feature levels of a new data directory; written once by Kafka's own tool, then copied.

        meta.properties alone would also start a broker, but with group.version and transaction.version 0.
        """
        cached = cache_directory() / f"bootstrap-{KAFKA_VERSION}.checkpoint"
        with sole_user(cache_directory()):
            if not cached.exists():
                with tempfile.TemporaryDirectory() as scratch:
                    conf, data = Path(scratch, "server.properties"), Path(scratch, "data")
                    _write_properties(conf, self.properties(1) | {"log.dirs": data.as_posix()})
                    tool = ("kafka.tools.StorageTool", "format", "-t", _new_cluster_id(), "-c", str(conf))
                    done = subprocess.run(self._java((), *tool), capture_output=True, env=java_environment())
                    if done.returncode:
                        text = (done.stdout + done.stderr).decode(errors="replace")[-2_000:]
                        raise DevBrokerUnavailable(f"Kafka's storage tool failed:\n{text}\n{ALTERNATIVES}")
                    shutil.copy(data / "bootstrap.checkpoint", cached.with_suffix(".new"))
                cached.with_suffix(".new").replace(cached)
        return cached


def _new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


# --- Command line -----------------------------------------------------------------------------------------------------


def aot_cache() -> Path:
    """Java's ahead-of-time cache (68 MB): a new broker is up in 1.2 s instead of 3, for half of the CPU time.

    Only made on request, as `make install` does.
    """
    return cache_directory() / f"kafka-{KAFKA_VERSION}.aot"
