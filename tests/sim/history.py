"""What is known about one request in a run of the simulation: what promises.py judges by."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamtask.core.offset_map import Mark
from streamtask.domain.model import RequestRecord, TaskStatus


@dataclass(slots=True, repr=False)
class History:
    """All that is known about one request record.

    excused  the log lost the record before it had ended (retention, truncation): it need not become terminal
    running  its newest attempt may be under way, as far as committed events tell
    died     a process died under its newest attempt
    handed   a clean record says that its newest attempt, which was under way, has ended
    parted   the child that its newest attempt shared with others has died
    forgiven it was acquitted in its newest attempt
    begun_ms when that began
    charges, mark, trial  what the newest committed ledger says
    """

    record: RequestRecord
    origin: str
    lost_max: int
    seen: TaskStatus | None = None
    seen_attempt: int = 0
    seen_updated: int = 0
    created: bool = False
    attempt: int = 0
    granted: set[int] = field(default_factory=set)
    started: set[int] = field(default_factory=set)
    ended: TaskStatus | None = None
    ended_code: str | None = None
    letters: int = 0
    lost: int = 0
    charges: int = 0
    must: bool = False
    may: bool = False
    running: bool = False
    died: bool = False
    handed: bool = False
    parted: bool = False
    forgiven: bool = False
    begun_ms: int = 0
    mark: int = Mark.NONE
    trial: int = 0
    blurred: bool = False  #: the group's offsets were lost: nobody can know its deaths until the next attempt
    again: bool = False  #: a mere dead letter that a recovery may write once more
    excused: bool = False
    unsaid: bool = False  #: it has ended, and nothing that is left says so: it may run once more, from its beginning
    anew: bool = False  #: it did: what came behind it may have been running by then

    def __repr__(self) -> str:
        request = self.record.request
        asked = (request.task_type, (request.parameters or {}).get("script")) if request is not None else None
        names = "seen seen_attempt attempt granted started ended ended_code letters lost charges must may running died"
        facts = {name: value for name in [*names.split(), "mark", "trial"] if (value := getattr(self, name))}
        return f"<{self.origin} {self.record.task_id[:8]} {asked} {facts}>"

    def begin_anew(self) -> None:
        """Its end is forgotten, and it runs as if it never had."""
        self.anew = True
        self.unsaid = self.created = self.running = self.died = self.handed = self.must = self.may = False
        self.attempt = self.letters = self.lost = self.charges = self.seen_attempt = self.trial = 0
        self.ended = self.ended_code = self.seen = None
        self.granted, self.started, self.blurred, self.mark = set(), set(), True, Mark.NONE

    @property
    def finished(self) -> bool:
        return self.ended is not None or (self.letters > 0 and not self.created)

    @property
    def open(self) -> bool:
        """It has yet to become terminal."""
        return not self.finished and not self.excused
