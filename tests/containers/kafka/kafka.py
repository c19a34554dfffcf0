"""What the scripts of the vendors' Kafka images do: KAFKA_* variables become server.properties, then the broker starts.

    kafka.py run                    configure, format, launch: the command of apache/kafka
    kafka.py configure FILE         of confluentinc/cp-kafka, step by step (testcontainers writes between the steps)
    kafka.py launch FILE
    kafka.py storage ARGUMENT …     Kafka's own storage tool

As in apache/kafka: one KAFKA_* variable, and none of the defaults below holds. Runs inside the image, alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

JAVA = "/opt/java/bin/java"
PROPERTIES = Path("/opt/kafka/server.properties")
CLUSTER_ID = "5L6g3nShT-eMCtK--X86sw"  # that of apache/kafka
# Variables of the start scripts, not of the broker.
OTHERS = ("KAFKA_OPTS", "KAFKA_HEAP_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS")
OTHER_FAMILIES = ("KAFKA_JMX_", "KAFKA_LOG4J_")
DEFAULTS = {
    "node.id": "1",
    "process.roles": "broker,controller",
    "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
    "advertised.listeners": "PLAINTEXT://localhost:9092",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "controller.quorum.voters": "1@localhost:9093",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
}


def properties(environment: Mapping[str, str]) -> dict[str, str]:
    """Of KAFKA_A_B the property a.b; `__` is `_`, `___` is `-`."""
    given = {}
    for variable, value in environment.items():
        if variable.startswith("KAFKA_") and variable not in OTHERS and not variable.startswith(OTHER_FAMILIES):
            name = variable.removeprefix("KAFKA_").lower().replace("___", "-").replace("__", "\0").replace("_", ".")
            given[name.replace("\0", "_")] = value
    return {"log.dirs": "/var/lib/kafka/data", **(given or DEFAULTS)}


def configure(file: Path) -> None:
    file.write_text("".join(f"{name}={value}\n" for name, value in sorted(properties(os.environ).items())))


def java(flags: Sequence[str], *program: str) -> list[str]:
    logging = "-Dlog4j2.configurationFile=/opt/kafka/bin/log4j2.properties"
    return [JAVA, "-XX:+UseSerialGC", *flags, logging, "-cp", "/opt/kafka/libs/*", *program]


def storage(*arguments: str) -> int:
    return subprocess.run(java(("-XX:TieredStopAtLevel=1",), "kafka.tools.StorageTool", *arguments)).returncode


def launch(file: Path) -> None:
    """Format what is not formatted yet, then become the broker."""
    code = storage("format", "--ignore-formatted", "-t", os.environ.get("CLUSTER_ID", CLUSTER_ID), "-c", str(file))
    if code:
        sys.exit(code)
    flags = os.environ.get("KAFKA_HEAP_OPTS", "-Xmx256m").split()
    flags += ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]  # silences JDK 25
    command = java(flags, "kafka.Kafka", str(file))
    os.execv(command[0], command)


def main(step: str, *arguments: str) -> None:
    if step == "storage":
        sys.exit(storage(*arguments))
    file = Path(arguments[0]) if arguments else PROPERTIES
    if step in ("run", "configure"):
        configure(file)
    if step in ("run", "launch"):
        launch(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
