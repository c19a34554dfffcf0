"""A Docker daemon of our own, for tests: where none answers, and root and dockerd are there.

    python -m tests.containers.daemon        # prints where it listens; until Ctrl-C, SIGTERM or the end of its input

Leaves nothing but its images, which are kept in the cache: containers, networks and volumes go, the daemon and its bridge
too, however the one who started it ends (its input ends then). It never touches what the machine shares: no rule of
iptables, no forwarding (so its containers reach each other and are reached on 127.0.0.1, and nothing else; an image that
needs the network while it is built is built with `--network host`). One such daemon at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from streamtask.devbroker.jars import cache_directory

NEEDED = ("docker", "dockerd", "containerd", "ip")
INSTALL = "apt-get install docker.io iproute2 mmdebstrap"
START_S, STOP_S, TURN_S = 60.0, 30.0, 300.0
TURN = Path("/tmp/streamtask-docker.turn")  # bridges and subnets are the machine's: one at a time on all of it
NEW = "streamtask-docker-"  # of the folder that holds what lives as long as the daemon
_PR_SET_PDEATHSIG = 1


class Missing(Exception):
    """No daemon, image or tool can be had here; the text says why and what to install."""


def answers(host: str | None) -> bool:
    """Is there a daemon (host None: where the docker command looks for it)?"""
    if shutil.which("docker") is None:
        return False
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def data_root() -> Path:
    return cache_directory() / "docker"


def check() -> None:
    """Raises Missing when no daemon can be started here."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if sys.platform != "linux" or missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} missing" if missing else "only root on Linux can start one"
        raise Missing(f"no Docker daemon answers, and none can be started ({why}). As root: {INSTALL}")


class Daemon:
    """dockerd and everything that it makes. Use it as a context manager."""

    def __init__(self) -> None:
        self._turn: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._bridges: set[str] = set()

    @property
    def host(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self._folder}/docker.sock"

    def __enter__(self) -> Daemon:
        check()
        self._turn = TURN.open("a")
        _lock(self._turn)
        _clear_former()
        self._bridges = bridges()
        self._folder = Path(
            tempfile.mkdtemp(prefix=NEW, dir="/tmp")
        )  # short: a socket's path has at most 108 characters
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder = self._folder
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("dockerd", "--data-root", str(data_root()), "--exec-root", str(folder / "exec")),
                    *("--pidfile", str(folder / "pid"), "--host", self.host, "--ip", "127.0.0.1"),
                    *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + START_S
        while not answers(self.host):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise Missing(f"dockerd does not run here: {''.join(tail)[-300:]}")
            threading.Event().wait(0.05)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                _remove_everything(self.host)
            _end(self._process)
        _sweep(self._folder)
        _delete(bridges() - self._bridges)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._turn is not None:
            self._turn.close()


@contextlib.contextmanager
def kept() -> Iterator[str]:
    """A daemon in the care of a process of its own, which ends it when this one ends, however. Yields DOCKER_HOST.

    Raises Missing.
    """
    check()
    command = [sys.executable, "-m", "tests.containers.daemon"]
    keeper = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests; then the input ends
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    try:
        said = keeper.stdout.readline()
        if not said:
            raise Missing(keeper.stderr.read().strip())
        yield said.strip().partition("=")[2]
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()
        keeper.stderr.close()


def left() -> list[str]:
    """What is there of a daemon of ours: folders, processes, mounts. Nothing, when none runs."""
    folders = sorted(map(str, Path("/tmp").glob(f"{NEW}*")))
    processes = [f"process {pid}" for pid in (*_of(Path("/tmp", NEW)), *_contained())]
    return [*folders, *processes, *_mounted(data_root())]


def bridges() -> set[str]:
    """Network bridges as Docker names them."""
    names = os.listdir("/sys/class/net")
    return {name for name in names if name == "docker0" or (name.startswith("br-") and len(name) == len("br-") + 12)}


def _lock(turn: IO[str]) -> None:
    deadline = time.monotonic() + TURN_S
    while True:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Missing(f"another run has had the Docker daemon of our own for {TURN_S:g} s") from None
            threading.Event().wait(0.2)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _docker(host: str, *arguments: str) -> list[str]:
    done = subprocess.run(["docker", "--host", host, *arguments], capture_output=True, text=True, timeout=120)
    return done.stdout.split()


def _remove_everything(host: str) -> None:
    """But images that have a name. All of it is ours: nobody else knows this daemon."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        containers = _docker(host, "ps", "--all", "--quiet")
        if containers:
            _docker(host, "rm", "--force", "--volumes", *containers)
        for kind in ("network", "volume"):
            _docker(host, kind, "prune", "--force")
        _docker(host, "image", "prune", "--force", "--filter", "until=1h")  # younger layers speed up the next test


def _clear_former() -> None:
    """What is left of a daemon whose keeper was killed, too."""
    former = list(Path("/tmp").glob(f"{NEW}*"))
    for folder in former:
        _sweep(folder)
        shutil.rmtree(folder, ignore_errors=True)
    if former and not answers("unix:///var/run/docker.sock"):  # else they may be somebody's
        _delete(bridges())


def _delete(names: set[str]) -> None:
    for name in names:
        subprocess.run(["ip", "link", "delete", name], check=False)


def _sweep(folder: Path) -> None:
    """Processes and mounts of the daemon in this folder."""
    if not folder.name.startswith(NEW):
        return
    _end_all(lambda: _of(folder, b"dockerd"), signal.SIGTERM)  # ends its containers, and containerd
    _end_all(lambda: [*_of(folder), *_contained()], signal.SIGKILL)
    for place in reversed(_mounted(folder, data_root())):
        subprocess.run(["umount", "--lazy", place], check=False)


def _end_all(found: Callable[[], Iterable[int]], number: signal.Signals) -> None:
    """Ask, and wait until they are gone, or for STOP_S."""
    told: set[int] = set()
    deadline = time.monotonic() + STOP_S
    while (pids := set(found())) and time.monotonic() < deadline:
        for pid in pids - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        told |= pids
        threading.Event().wait(0.1)


def _mounted(*folders: Path) -> list[str]:
    """Places in these folders, and the folders themselves: dockerd mounts its data upon itself."""
    with open("/proc/mounts") as mounts:
        places = [Path(line.split()[1]) for line in mounts]
    return [str(place) for place in places if any(place.is_relative_to(folder) for folder in folders)]


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid())


def _of(folder: Path, *names: bytes) -> Iterator[int]:
    """Processes that name this folder in their command line: dockerd, containerd, its shims."""
    for entry in _processes():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            name = os.path.basename(words[0])
            if name.startswith(names or (b"dockerd", b"containerd")) and any(os.fsencode(folder) in w for w in words):
                yield int(entry.name)


def _contained() -> Iterator[int]:
    """Processes in containers that our data knows."""
    with contextlib.suppress(FileNotFoundError):
        ids = os.listdir(data_root() / "containers")
        for entry in _processes():
            with contextlib.suppress(OSError):
                groups = (entry / "cgroup").read_text()
                if any(f"/{one}" in groups or f"docker-{one}" in groups for one in ids):
                    yield int(entry.name)


def _until_the_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> int:
    """Until a signal comes or the input ends."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Daemon() as daemon:
            print(f"DOCKER_HOST={daemon.host}", flush=True)
            threading.Thread(target=_until_the_end_of_input, args=(stop,), daemon=True).start()
            while not stop.wait(1):  # signals are heard between two waits
                pass
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
