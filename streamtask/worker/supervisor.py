"""The parent of the worker processes: starts N of them, restarts dead ones, passes signals on, and never lets one outlive it.

Always true: a child dies with its supervisor, however that dies (execution/parent_watch.py), because an orphan that keeps
working is a second execution of its tasks. The first SIGTERM, SIGINT or SIGHUP drains (SIGTERM to every child), the second
aborts (SIGTERM again), the third kills. A child that exits with 2 (its settings cannot work) is not restarted: the others are
drained and the supervisor exits with 2.

A child keeps its member id of the consumer group, and its signs of life, in a note (heartbeat.py). Unlike a pipe, a note never
fills up, is never behind, and can be read after the child's death, whichever process inherited its descriptors. A child that
lives but gives no sign of life is killed, and so replaced.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamtask.worker.child_start import ChildProcess
from streamtask.worker.heartbeat import NoteFile

EXIT_CONFIG = 2
KILL_AFTER_S = 5.0  # from the abort to SIGKILL
SILENT_S = 30.0  # a worker's own watchdog needs 20; max.poll.interval.ms is 60
LOOK_S = 1.0  # a signal that arrives while this process is frozen may go to another thread, which wakes no one
_STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")

OnEvent = Callable[[str, Mapping[str, Any]], None]


class Child(NamedTuple):
    """One place among the N. pid None: it waits for its restart; `deaths`: in a row, without a stable time between."""

    slot: int
    pid: int | None
    deaths: int
    seconds: float


@dataclass(slots=True)
class _Place:
    slot: int
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    deaths: int = 0
    start_at_s: float | None = 0.0  # when to start it; None: it runs, or must not start again
    note: NoteFile | None = None  # of the running process
    beats: int = 0  # its beats at the last look
    silent: int = 0  # consecutive looks without a new beat


class Supervisor:
    """N processes of one command.

    command        slot (0..N-1) → argv; the child must first call die_with_parent()
    settings       what every child gets through its pipe (child_start.py), as one line of text
    early          slot → a child that was started before, and waits for its settings; None: start one
    grace_s        time for a drain; a child that runs longer is aborted, then killed
    backoff_s      wait before the first restart, doubled for each death up to backoff_max_s
    stable_s       a child that ran this long starts again from backoff_s
    silent_s       a child that has given a sign of life (heartbeat.py) and then none for this long is killed
    on_event       called with what happens: child_started, child_ended, child_restarts, child_silent, draining, aborting,
                   killing
    on_death       called with the member id of a child that ended without leaving the group; must not wait
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        processes: int,
        *,
        grace_s: float = 30.0,
        backoff_s: float = 0.5,
        backoff_max_s: float = 30.0,
        stable_s: float = 60.0,
        kill_after_s: float = KILL_AFTER_S,
        silent_s: float = SILENT_S,
        settings: str = "{}",
        early: Callable[[int], ChildProcess | None] = lambda _slot: None,
        on_event: OnEvent | None = None,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        assert processes >= 1, f"{processes} processes"
        self._command = command
        self._places = [_Place(slot) for slot in range(processes)]
        self._grace_s = grace_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._stable_s = stable_s
        self._kill_after_s = kill_after_s
        self._silent_s = silent_s
        self._look_at_s = 0.0
        self._settings, self._early = settings, early
        self._on_event = on_event or (lambda _name, _fields: None)
        self._on_death = on_death or (lambda _member: None)
        # What happened: a place whose child has ended, or None for a stop signal. SimpleQueue: its put may be called
        # from a signal handler.
        self._happened: queue.SimpleQueue[_Place | None] = queue.SimpleQueue()  # bounded by children and stop signals
        self._stops = 0  # 0 running, 1 draining, 2 aborting, 3 killing
        self._escalate_at_s: float | None = None
        self._code = 0

    def run(self) -> int:
        """Start them and stay until all have ended for good.

        Returns the exit code: 0 after a clean drain, 2 if a child's settings cannot work, 1 if a child had to be killed or
        failed while stopping.

        In the main thread it handles stop signals; elsewhere only stop() stops it. The calling thread must live as long as
        the children: Linux counts its end as the parent's.
        """
        before = self._take_signals()
        read_fd, write_fd = os.pipe()  # the write end stays here, unwritten; it closes when this process dies
        try:
            while True:
                self._start_due(read_fd)
                if self._stops and all(place.process is None for place in self._places):
                    return self._code
                self._next_event()
                self._look()
        finally:
            for place in self._places:
                if place.process is not None:  # an error in here: leave no child behind
                    place.process.kill()
                self._drop_note(place)
            os.close(write_fd)
            os.close(read_fd)
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Do what a stop signal does: first drain, then abort, then kill. Safe in any thread and in signal handlers."""
        self._happened.put(None)

    def children(self) -> list[Child]:
        """The N places at this moment. May be called from any thread."""
        now = time.monotonic()
        return [
            Child(place.slot, process.pid if process else None, place.deaths, now - place.started_s if process else 0.0)
            for place in self._places
            for process in (place.process,)
        ]

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _take_signals(self) -> dict[signal.Signals, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        numbers = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
        return {number: signal.signal(number, lambda _number, _frame: self.stop()) for number in numbers}

    def _start_due(self, read_fd: int) -> None:
        now = time.monotonic()
        for place in self._places:
            if not self._stops and place.start_at_s is not None and place.start_at_s <= now:
                self._start(place, read_fd)

    def _start(self, place: _Place, read_fd: int) -> None:
        argv = list(self._command(place.slot))
        place.start_at_s = None
        place.started_s = time.monotonic()
        place.beats, place.silent = 0, 0
        try:
            child = self._early(place.slot) or ChildProcess(argv, parent_fd=read_fd)
        except (FileNotFoundError, PermissionError):
            raise  # no such program: waiting does not help
        except OSError as error:  # no memory or no process table entry at the moment: the others run on
            self._on_event("child_not_started", {"slot": place.slot, "error": str(error)})
            self._restart_later(place, 0.0)
            return
        child.configure(self._settings)
        process, place.note = child.process, child.note
        place.process = process
        threading.Thread(target=self._await_end, args=(place, process), name=f"child-{place.slot}", daemon=True).start()
        self._on_event("child_started", {"slot": place.slot, "pid": process.pid, "deaths": place.deaths})

    def _await_end(self, place: _Place, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._happened.put(place)

    def _next_event(self) -> None:
        now = time.monotonic()
        due = [place.start_at_s for place in self._places if place.start_at_s is not None and not self._stops]
        if self._escalate_at_s is not None:
            due.append(self._escalate_at_s)
        try:
            happened = self._happened.get(timeout=max(0.0, min([now + LOOK_S, *due]) - now))
        except queue.Empty:
            if self._escalate_at_s is not None and time.monotonic() >= self._escalate_at_s:
                self._escalate("time")
            return
        if happened is None:
            self._escalate("signal")
        else:
            self._ended(happened)

    def _look(self) -> None:
        """Kill a child that no longer gives a sign of life although its process lives.

        Code that keeps the interpreter to itself stops every thread, even the child's own watchdog, while its membership
        continues. Looks are counted, not seconds: a machine that stood still has not looked.
        """
        now = time.monotonic()
        if now < self._look_at_s:
            return
        self._look_at_s = now + LOOK_S
        for place in self._places:
            if place.process is None or place.note is None:
                continue
            beats = place.note.beats()
            place.silent = (
                place.silent + 1 if beats and beats == place.beats else 0
            )  # no beat yet: it is still starting
            place.beats = beats
            if place.silent * LOOK_S >= self._silent_s:
                fields = {"slot": place.slot, "pid": place.process.pid, "seconds": place.silent * LOOK_S}
                self._on_event("child_silent", fields)
                place.silent = 0
                place.process.kill()

    def _ended(self, place: _Place) -> None:
        process = place.process
        assert process is not None, f"slot {place.slot} ended twice"
        code = process.returncode
        seconds = time.monotonic() - place.started_s
        place.process = None
        member = self._drop_note(place)
        if member:
            self._on_death(member)
        fields = {"slot": place.slot, "pid": process.pid, "code": code, "seconds": round(seconds, 3)}
        self._on_event("child_ended", fields)
        if code == EXIT_CONFIG:
            self._code = EXIT_CONFIG
            if not self._stops:
                self._escalate("config")
        elif self._stops:
            # Ended by the signal itself: it was still starting, had no handler for it yet, and held nothing.
            if code not in (0, -signal.SIGTERM) and self._code == 0:
                self._code = 1
        else:
            self._restart_later(place, seconds)

    @staticmethod
    def _drop_note(place: _Place) -> str:
        """Close the note. Returns the last member id; "" if the child had left the group, or had not joined."""
        note, place.note = place.note, None
        if note is None:
            return ""
        try:
            return note.member()
        finally:
            note.close()

    def _restart_later(self, place: _Place, seconds: float) -> None:
        place.deaths = 1 if seconds >= self._stable_s else place.deaths + 1
        wait_s = min(self._backoff_max_s, self._backoff_s * 2.0 ** min(place.deaths - 1, 60))
        place.start_at_s = time.monotonic() + wait_s
        self._on_event("child_restarts", {"slot": place.slot, "wait_s": wait_s, "deaths": place.deaths})

    def _escalate(self, why: str) -> None:
        """Go one step further: drain, abort, kill."""
        self._stops = min(self._stops + 1, 3)
        number = signal.SIGKILL if self._stops == 3 else signal.SIGTERM
        wait_s = {1: self._grace_s, 2: self._kill_after_s}.get(self._stops)
        self._escalate_at_s = None if wait_s is None else time.monotonic() + wait_s
        alive = [place.process for place in self._places if place.process is not None]
        self._on_event(("draining", "aborting", "killing")[self._stops - 1], {"why": why, "children": len(alive)})
        for process in alive:
            process.send_signal(number)  # Popen checks first whether it has been reaped, so a reused pid is never hit
