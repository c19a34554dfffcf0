"""The compose plugin of the docker command: the installed one, else built from its source by Go and kept in the cache.

`docker compose config` needs no daemon, so the compose file is validated wherever this can be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from streamtask.devbroker.jars import cache_directory
from tests.containers.daemon import Missing

VERSION = "2.40.3"
LABEL = "github.com/docker/compose/v2/internal.Version"
MODULE = "github.com/docker/compose/v2/cmd"
INSTALL = "apt-get install docker-compose-v2 or docker-compose-plugin, or Go 1.23 to build it"
BUILD_S = 600.0


def with_compose(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which `docker compose` works. Raises Missing."""
    if shutil.which("docker") is None:
        raise Missing(f"no docker command, and no docker compose: {INSTALL}")
    if _works(environment):
        return dict(environment)
    binary = cache_directory() / f"docker-compose-{VERSION}"
    if not binary.exists():
        _build(binary)
    # A configuration of its own: somebody's ~/.docker stays as it is.
    plugins = cache_directory() / "docker-config" / "cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    link = plugins / "docker-compose"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(binary)
    found = {**environment, "DOCKER_CONFIG": str(plugins.parent)}
    if not _works(found):
        raise Missing(f"docker compose {VERSION} was built and does not run: {INSTALL}")
    return found


def _works(environment: Mapping[str, str]) -> bool:
    return subprocess.run(["docker", "compose", "version"], env=dict(environment), capture_output=True).returncode == 0


def _build(target: Path) -> None:
    """About a minute and a half on two cores; `go install` refuses it because of its replace lines."""
    if shutil.which("go") is None:
        raise Missing(f"no docker compose: {INSTALL}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, "docker-compose")
        for command in (
            ["go", "mod", "init", "compose"],
            ["go", "get", f"{MODULE}@v{VERSION}"],
            ["go", "build", "-ldflags", f"-s -w -X {LABEL}=v{VERSION}", "-o", str(made), MODULE],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_S, env=os.environ)
            if done.returncode:
                raise Missing(f"docker compose {VERSION} cannot be built: {done.stderr.strip()[-300:]}")
        made.replace(target)
