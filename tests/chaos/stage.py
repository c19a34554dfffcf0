"""What the faults of a chaos run act on: the workers, the brokers, the topics, the network; and what they tell."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from streamtask.devbroker.cluster import DevBroker
from tests.acceptance.harness import Bench
from tests.chaos.fleet import Fleet, Host
from tests.chaos.load import Load

if TYPE_CHECKING:
    from tests.chaos.network import Network

T = TypeVar("T")
GONE_S = 90.0  # a supervisor's own limit is 22 s; the rest is for frozen ones in it, and a machine with other work
PARTITIONS = 8  # more than there are ever workers: whoever joins takes some from the others


class Stage:
    """network: None where workers reach the brokers directly. deleted: see checks.Facts."""

    def __init__(
        self,
        kafka: DevBroker,
        bench: Bench,
        fleet: Fleet,
        load: Load,
        tell: Callable[[str], None],
        network: Network | None,
    ) -> None:
        self.kafka, self.bench, self.fleet, self.load, self.network = kafka, bench, fleet, load, network
        self.struck: Counter[str] = Counter()
        self.deleted: dict[tuple[str, int], int] = {}
        self.narrow: list[tuple[int, int]] = []  # likewise
        self.offsets_touched_ms: int | None = None  # the first time
        self.control_anew_ms: int | None = None  # the last time
        self.dead_anew_ms: int | None = None  # the last time when tasks.dead was made anew
        self.letters_gone: dict[tuple[str, int], int] = {}  # see checks.Facts
        self.grown = False  # partitions were added
        self.partitions = PARTITIONS
        self.acting = ""  # the name of the fault that speaks
        self._tell = tell
        self._began = time.monotonic()

    def begin(self) -> None:
        """The clock of what is told starts."""
        self._began = time.monotonic()

    def say(self, text: str, *, undone: bool = False) -> None:
        """One line of the run: when, what, whom."""
        seconds = time.monotonic() - self._began
        if not undone:
            self.struck[self.acting] += 1
        name = "  undone" if undone else self.acting
        self._tell(f"{int(seconds) // 60:02d}:{seconds % 60:04.1f}  {name:<18} {text}")

    def note(self, text: str) -> None:
        """A line that is no fault."""
        seconds = time.monotonic() - self._began
        self._tell(f"{int(seconds) // 60:02d}:{seconds % 60:04.1f}  {'':<18} {text}")

    def pick(self, candidates: Sequence[T], args: Mapping[str, Any]) -> T | None:
        """The one that the draw means; None: there is nobody."""
        return candidates[int(args["pick"] * len(candidates))] if candidates else None

    def gone(self, host: Host) -> Generator[float, None, None]:
        """Until the host has ended."""
        deadline = time.monotonic() + GONE_S
        while host.alive:
            assert time.monotonic() < deadline, f"host {host.number} does not end within {GONE_S:g} s of its SIGTERM"
            yield 0.2

    def aside(self, call: Callable[[], object]) -> Generator[float, None, None]:
        """Something that takes long, in a thread of its own; what it raises is raised here."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 raised below
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            yield 0.1
        if failed:
            raise failed[0]
