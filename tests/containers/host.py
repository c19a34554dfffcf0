"""A Docker daemon that answers, whosever it is, with the images that tests need, and what tests do on it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamtask.devbroker.cluster import free_ports
from tests.containers import images
from tests.containers.compose import with_compose
from tests.containers.daemon import answers, kept

ROOT = Path(__file__).parents[2]
COMMAND_S = 600.0
KINDS = {
    "container": ("ps", "--all", "--quiet", "--no-trunc"),
    "volume": ("volume", "ls", "--quiet"),
    "network": ("network", "ls", "--quiet", "--no-trunc"),
}


@dataclass
class Host:
    """environment: in which the docker command finds the daemon. own: nobody else uses it, and it has no way out."""

    environment: dict[str, str]
    own: bool
    tag: str = field(default_factory=lambda: f"streamtask:test-{secrets.token_hex(4)}")  # our image, once built

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=COMMAND_S
        )
        assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}\n{done.stderr}"
        return done

    def out(self, *arguments: str) -> str:
        return self.run(*arguments).stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out("inspect", name))[0]
        return found

    def there(self) -> dict[str, set[str]]:
        """Ids of all that `docker compose down -v` has to remove."""
        return {kind: set(self.out(*command).split()) for kind, command in KINDS.items()}

    def build(self) -> str:
        """Our own image; its tag. Cheap when nothing has changed."""
        images.build(self.run, self.tag, own=self.own)
        return self.tag


class Project:
    """The compose file under a name of its own, with ports of its own."""

    def __init__(self, host: Host, image: str) -> None:
        self.host = host
        self.name = f"streamtask-{secrets.token_hex(4)}"
        self.http_port, self.kafka_port = free_ports(2)
        self.environment = {
            **with_compose(host.environment),
            "IMAGE": image,
            "HTTP_PORT": str(self.http_port),
            "KAFKA_PORT": str(self.kafka_port),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.kafka_port}"

    def command(self, *arguments: str) -> list[str]:
        more = ("--file", "docker-compose.yml", "--file", "tests/containers/network.yml") if self.host.own else ()
        return ["docker", "compose", "--project-name", self.name, *more, *arguments]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=COMMAND_S
        )
        assert not check or done.returncode == 0, f"compose {' '.join(arguments)}: {done.stdout}\n{done.stderr}"
        return done

    def ids(self, service: str) -> list[str]:
        return self.run("ps", "--quiet", service).stdout.split()


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Whoever answers; else a daemon of our own with stand-in images. Raises daemon.Missing."""
    environment = dict(os.environ)
    if answers(None):
        found = Host(environment, own=False)
        images.pull(found.run, images.PYTHON, images.KAFKA, images.CONFLUENT)
        try:
            yield found
        finally:
            found.run("image", "rm", "--force", found.tag, check=False)
        return
    with kept() as address:
        # No buildx on a plain Debian: the classic builder.
        found = Host({**environment, "DOCKER_HOST": address, "DOCKER_BUILDKIT": "0"}, own=True)
        images.stand_in(found.run, found.environment)
        found.tag = "streamtask:test"  # kept with the others: the next build begins from its layers
        yield found
