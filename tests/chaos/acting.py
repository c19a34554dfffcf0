"""Plays a schedule: begins each fault when it is due and the part that it claims is free, and sees it through."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaException

from streamtask.errors import Unreachable
from tests.chaos.faults import Acting, Fault
from tests.chaos.schedule import Planned
from tests.chaos.stage import Stage

TICK_S = 0.05


@dataclass
class _Active:
    fault: Fault
    acting: Acting
    due: float


class Player:
    """play() until the time is over, heal() to see what is under way to its end."""

    def __init__(
        self, stage: Stage, plan: Sequence[Planned], faults: Mapping[str, Fault], between: Callable[[], None]
    ) -> None:
        self.stage = stage
        self.skipped = 0
        self.given_up = 0
        self._plan = list(plan)
        self._faults = faults
        self._between = between
        self._active: list[_Active] = []

    def play(self, seconds: float) -> None:
        began = time.monotonic()
        self.stage.begin()
        try:
            while (now := time.monotonic() - began) < seconds:
                self._begin(now)
                self._go_on()
                self._between()
                time.sleep(TICK_S)
        except BaseException:
            self.undo()
            raise
        self.skipped = len(self._plan)

    def heal(self, seconds: float) -> None:
        """No new ones; those under way undo what they did, at the deadline by force."""
        deadline = time.monotonic() + seconds
        try:
            while self._active and time.monotonic() < deadline:
                self._go_on()
                self._between()
                time.sleep(TICK_S)
        finally:
            self.undo()

    def undo(self) -> None:
        for active in self._active:
            active.acting.close()
        self._active.clear()

    def _begin(self, now: float) -> None:
        """In their order, but one that has to wait holds up only those that claim the same."""
        claimed = set().union(*(active.fault.claims for active in self._active))
        for planned in [one for one in self._plan if one.at_s <= now]:
            fault = self._faults[planned.fault]
            if not fault.claims & claimed:
                self._plan.remove(planned)
                self._active.append(_Active(fault, fault.act(self.stage, planned.arguments), 0.0))
            claimed |= fault.claims

    def _go_on(self) -> None:
        for active in list(self._active):
            if time.monotonic() < active.due:
                continue
            self.stage.acting = active.fault.name
            try:
                active.due = time.monotonic() + next(active.acting)
            except StopIteration:
                self._active.remove(active)
            except (KafkaException, Unreachable, TimeoutError) as error:
                # The fault's own question to the cluster: no promise is broken when that is not answered in time.
                self._active.remove(active)
                self.stage.note(f"{active.fault.name} gave up: {error}")
                self.given_up += 1
