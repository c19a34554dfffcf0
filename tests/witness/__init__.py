"""The second witness of every history: a Java program that shares no code with streamtask, and its comparison with the audit.

`witness(bootstrap, topic)` runs Witness.java, which reads a status topic whole and returns what it found;
`compare(audit, found)` says where it and `streamtask audit` disagree. Both read at rest: nothing may be written between.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamtask.audit import Report
from streamtask.devbroker.jars import jar_path, jars, java_environment, locked_jars
from streamtask.errors import DevBrokerUnavailable

SOURCE = Path(__file__).with_name("Witness.java")
JAVA_MIN = 17  # records, patterns
OPTIONS = ("-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # 1 GB: about 5 million histories
# What Apache Kafka's client needs: itself, its logging, and the compressions that a producer may use.
NEEDED = ("kafka-clients", "slf4j-api", "lz4-java", "snappy-java", "zstd-jni")

# What both judge, by the same name. The audit also knows requests, dead letters and offsets.
SHARED = frozenset(
    {
        "unreadable_event",
        "wrong_key",
        "wrong_partition",
        "wrong_task_id",
        "created_missing",
        "two_created",
        "two_ends",
        "event_after_end",
        "off_machine",
        "attempt_back",
        "time_back",
        "created_at_changed",
    }
)


class Unavailable(Exception):
    """The witness cannot run on this machine; the text says what is missing."""


def witness(bootstrap_servers: str, topic: str = "tasks.status", *, timeout_s: int = 120) -> dict[str, Any]:
    """What Witness.java says of the topic, read from its beginning to the ends of this moment.

    The document: records, skipped (not JSON: neither read nor judged), events_by_status, tasks (distinct task_ids),
    histories (request records), counts (histories by their last status), terminals, refreshed, truncated, violations
    with violations_by_kind and violation_list (kind, what, task_id, origin, partition, offset), ends, unread.

    Raises Unavailable without a JDK or jars, RuntimeError when it could not read.
    """
    java = _java()
    try:
        jars()
    except DevBrokerUnavailable as error:
        raise Unavailable(f"the jars of Apache Kafka's client: {error}") from None
    needed = [jar_path(coordinate) for coordinate, _ in locked_jars() if coordinate.split(":")[1] in NEEDED]
    assert len(needed) == len(NEEDED), needed
    done = subprocess.run(
        [java, *OPTIONS, "-cp", ":".join(map(str, needed)), SOURCE, bootstrap_servers, topic, str(timeout_s)],
        capture_output=True,
        text=True,
        env=java_environment(),
        timeout=timeout_s + 120,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the witness could not read {topic}: {done.stderr[-3_000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _java() -> Path:
    """The java beside javac: a plain runtime cannot compile a source file."""
    compiler = shutil.which("javac")
    java = None if compiler is None else Path(compiler).resolve().with_name("java")
    if java is None or not java.exists():
        raise Unavailable(f"no JDK ({JAVA_MIN} or newer) on PATH. Debian: apt-get install openjdk-17-jdk-headless")
    return java


def compare(audit: Report | Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Where audit and witness disagree, one line each; [] when they agree.

    audit  the report, or its `to_json()`: read of the whole topic (no `--since`)
    found  what witness() returned of the same topic, with nothing written in between

    With records that the witness does not read (not JSON) only its own violations are held against the audit.
    """
    told: Mapping[str, Any] = audit.to_json() if isinstance(audit, Report) else audit
    unread = [f"the audit has not read: {text}" for text in told["unread"]]
    unread += [f"the witness has not read: {text}" for text in found["unread"]]
    if unread:
        return unread
    theirs, ours = _places(told["violation_list"]), _places(found["violation_list"])
    lines = [f"only the witness: {_line(place)}" for place in sorted(ours - theirs)]
    if found["skipped"]:
        return lines if told["violations"] <= len(told["violation_list"]) else []
    lines += [f"only the audit: {_line(place)}" for place in sorted(theirs - ours)]
    kinds = {kind: count for kind, count in told["violations_by_kind"].items() if kind in SHARED}
    seen = {kind: count for kind, count in found["violations_by_kind"].items() if kind in SHARED}
    if max(told["violations"] - len(told["violation_list"]), found["violations"] - len(found["violation_list"])) > 0:
        lines = []  # neither list is whole: only the numbers can be compared
    for name, audited, witnessed in (
        ("status events", told["events"], found["records"]),
        ("histories by status", told["counts"], found["counts"]),
        ("refreshed", told["refreshed"], found["refreshed"]),
        ("violations by kind", kinds, seen),
    ):
        if audited != witnessed:
            lines.append(f"{name}: {audited} (audit), {witnessed} (witness)")
    return lines


def _places(violations: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
    places = set()
    for one in violations:
        if one["kind"] in SHARED:
            at = one.get("evidence", one)
            places.add((one["kind"], at["partition"], at["offset"]))
    return places


def _line(place: tuple[str, int, int]) -> str:
    kind, partition, offset = place
    return f"{kind} at [{partition}] @{offset}"
