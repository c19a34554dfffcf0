"""The border of the core: what it asks the outside to do, what it is told, and the effects it leaves behind.

Two ways lead out of the core.

**Asks** are steps whose answer decides the next step: the broker calls of a claim, transaction, revoke, recovery, and what
has come in since the last turn. The flows in core/protocol.py and core/turn.py are generators that *yield* an ask and are
*sent* its answer: the order is the core's, and whoever drives them (worker/loop.py on a real broker, tests/sim on a model)
only performs. Between any two asks of the broker the world may change; the simulation cuts there.

**Effects** have no answer: start a handler, stop one, pause a partition, note a fact for the operator.

A *cell* is one request partition: (index of the band, shard). Band 0 is the lead band. Times: Now carries both clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from streamtask.domain.model import DeadLetter, HandlerKind, Outcome, RequestRecord, StatusEvent

Cell = tuple[int, int]


class Now(NamedTuple):
    """wall_ms: milliseconds since the epoch, may jump; mono_ms: monotonic milliseconds of this process."""

    wall_ms: int
    mono_ms: int


class Expected(NamedTuple):
    """What the engine expects of one cell. received: next offset from the log; backlog: records of it that are not admitted
    yet; held: why nothing is to come of it now, "" when it is to deliver."""

    received: int
    backlog: int = 0
    held: str = ""


# --- Answers ----------------------------------------------------------------------------------------------------------


class FaultKind(Enum):
    """What went wrong with an ask, in the terms of what may be done next."""

    RETRY = "retry"  #: nothing was changed (or nothing that matters); the same ask may be repeated after a poll
    UNSTABLE = "unstable"  #: committed offsets are held back by somebody's open transaction until the deadline
    ABORT = "abort"  #: the transaction has to be aborted; its batch can be rebuilt and sent again
    RECORD = "record"  #: as ABORT, and a record is the reason (too large, refused): the same batch would fail again
    STALE = "stale"  #: as ABORT: the broker no longer knows this member or its generation; poll
    FENCED = "fenced"  #: this transactional id is over (somebody claimed a shard, or a fatal error): a new id is needed
    DOUBT = "doubt"  #: the call may or may not have taken effect, or a copy of it may still arrive later


Place = tuple[str, int]  # ("status", shard) or ("dead", partition of tasks.dead); DEAD: tasks.dead as a whole
STATUS, LETTERS = "status", "dead"
DEAD: Place = (LETTERS, -1)


@dataclass(frozen=True, slots=True)
class Fault:
    """The answer to an ask that failed. `text` is for the operator.

    places  the partitions that refused a record, or did not answer, where that is known
    """

    kind: FaultKind
    text: str = ""
    places: frozenset[Place] = frozenset()


@dataclass(frozen=True, slots=True)
class Committed:
    """Offset and metadata of one cell as a listing shows them; None = nothing committed."""

    offset: int | None = None
    text: str | None = None


UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Settled:
    """A stable committed offset with its metadata, and the bounds of the log seen after it.

    log_start, log_end  first offset held, and the high watermark (the *uncommitted* end); UNKNOWN while no broker leads the
                        partition
    """

    offset: int | None
    text: str | None
    log_start: int
    log_end: int

    @property
    def led(self) -> bool:
        """Whether a broker leads the partition, so that its log is known."""
        return self.log_end != UNKNOWN


class OffsetCommit(NamedTuple):
    """An offset to commit for one cell with its ledger text."""

    band: int
    shard: int
    offset: int
    text: str


@dataclass(slots=True)
class CommitPlan:
    """One transaction: produce `events` and `dead`, flush, send `offsets`, commit.

    Fence rule: `offsets` holds the lead cell of every shard that `events` or `dead` touches.

    avoid  partitions of tasks.dead that take nothing at the moment: the letters go to the others
    """

    events: list[StatusEvent] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    offsets: list[OffsetCommit] = field(default_factory=list)
    shards: tuple[int, ...] = ()
    avoid: frozenset[int] = frozenset()


# --- Asks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListOffsets:
    """Claim 1: what is committed now, pending transactions ignored. Answer: {cell: Committed}."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FenceIds:
    """Claim 2: init_transactions once with each of these ids, in parallel. Answer: None, or Fault(RETRY)."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadSettled:
    """Claim 3: committed() (waits for pending offsets), then the bounds of each log.

    Answer: {cell: Settled}, or Fault(UNSTABLE | RETRY).
    """

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CommitPlain:
    """Claim 4: one synchronous consumer commit, fenced by the generation.

    Answer: None; Fault(STALE) when the member is unknown; Fault(DOUBT) when no answer came in time.
    """

    offsets: tuple[OffsetCommit, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """Read these cells from these offsets from now on. Answer: None."""

    positions: Mapping[Cell, int]


@dataclass(frozen=True, slots=True)
class Produce:
    """Begin a transaction, hand the plan's events and dead letters to the client. Answer: None or a Fault."""

    plan: CommitPlan


@dataclass(frozen=True, slots=True)
class Waiting:
    """The answer to a Flush that is not done yet: of `produced` records the broker has acknowledged all but `left`."""

    left: int
    produced: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Wait until the broker has the plan's records. Answer: None, Waiting or a Fault.

    wait_ms  how long this call may wait; then the answer is Waiting, and the flow asks again
    last     True: what is not acknowledged by then never will be: the answer is Fault(FENCED) with the places of those records

    Records and what executions tell come in during this wait (core/turn.py). What they owe is the next batch's.
    """

    plan: CommitPlan
    wait_ms: int = 5_000
    last: bool = True


@dataclass(frozen=True, slots=True)
class SendOffsets:
    """Send the plan's offsets with the group metadata taken after the last poll. Answer: None or a Fault."""

    plan: CommitPlan


@dataclass(frozen=True, slots=True)
class EndTransaction:
    """Commit. Answer: None; Fault(DOUBT) when it timed out or outlasted the socket timeout, even if it succeeded."""


@dataclass(frozen=True, slots=True)
class AbortTransaction:
    """Abort. Answer: None or Fault(FENCED | RETRY)."""


@dataclass(frozen=True, slots=True)
class RenewProducer:
    """Throw the transactional producer away and make one with a new id. Answer: the id (str), or Fault(RETRY).

    patient  the link is slow: its transactions may last for as long as the slowest flush
    """

    patient: bool = False


@dataclass(frozen=True, slots=True)
class Poll:
    """Serve the group once: revoke, lost and assign callbacks may run inside. Answer: None."""


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Leave the group and join again: a late copy of a claim commit must not land later. Answer: None."""


@dataclass(frozen=True, slots=True)
class AwaitEnded:
    """Revoke: these executions were told to stop; wait for them within the revoke's deadline (core/turn.py does).

    Their endings reach the engine (Engine.ended) before the answer, which is None even if some go on.
    """

    tokens: tuple[int, ...]


Ask = (
    ListOffsets
    | FenceIds
    | ReadSettled
    | CommitPlain
    | Seat
    | Produce
    | Flush
    | SendOffsets
    | EndTransaction
    | AbortTransaction
    | RenewProducer
    | Poll
    | Rejoin
    | AwaitEnded
)
Answer = Any  # the type that the ask's docstring names, or Fault


# --- Effects ----------------------------------------------------------------------------------------------------------


class StopReason(Enum):
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    NOT_BEGUN = "not begun"  #: no child has begun with it in time: it runs again
    REVOKE = "revoke"  #: the shard goes elsewhere; the attempt is given up here


@dataclass(slots=True)
class Start:
    """Start a handler: RUNNING with this attempt is committed.

    token      names this execution for Ended and Progress; never used twice in a process
    timeout_ms the attempt's time limit as resolved by the engine (the engine keeps the clock), None = none: from the start
               of its handler, which a child tells (Engine.begun)
    group      two processes have died under it: run it in the quarantine child of this number, with all others that have it,
               whatever its kind, so that it cannot take the worker along; 0: it runs as its kind does
    shares     its type is short, and it shares its slot: a child may be handed several of these at once
    """

    token: int
    record: RequestRecord
    attempt: int
    kind: HandlerKind
    timeout_ms: int | None
    group: int = 0
    shares: bool = False

    @property
    def timed(self) -> bool:
        """Whether it matters when its handler begins: it has a time limit, or may stand a trial."""
        return self.timeout_ms is not None or self.group > 0

    @property
    def in_child(self) -> bool:
        """Whether its handler begins in a child, and so later than it is handed over."""
        return self.kind is HandlerKind.PROCESS or self.group > 0


@dataclass(frozen=True, slots=True)
class Stop:
    """End this execution: async is cancelled, a process killed, a thread told. Its slot is busy until it has ended."""

    token: int
    reason: StopReason


@dataclass(frozen=True, slots=True)
class Pause:
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class ReadControl:
    """Read tasks.control to the high watermark that it has now, then answer with these shards (Facts.controlled)."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecallStatus:
    """Read the shard's partition of tasks.status from its start to the high watermark that it has now, and answer in slices
    (Facts.recalled); other shards go on."""

    shard: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask these partitions, beside the transactions of this worker, whether they take records; answered by Facts.probed."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for the operator: a telemetry event name (observability/event_log.py) and its fields."""

    name: str
    fields: Mapping[str, Any]


Effect = Start | Stop | Pause | Resume | ReadControl | RecallStatus | Probe | Note


class Recalled(NamedTuple):
    """One status event read back from tasks.status while a shard recovers its position."""

    origin: str
    task_id: str
    ended: bool
    attempt: int
    updated_ms: int


# --- Asks within the process ------------------------------------------------------------------------------------------
#
# What core/turn.py yields besides: no broker answers these, and none of them fails.


@dataclass(frozen=True, slots=True)
class Fetch:
    """Serve the group as Poll does, then fetch requests, for as long as whoever performs it sees fit. Answer: whether any
    came (bool)."""


@dataclass(frozen=True, slots=True)
class TakeRecords:
    """What has been fetched. Answer: [RequestRecord].

    bands  only what is of the first so many bands, the rest at the next ask; None: all of it
    """

    bands: int | None = None


@dataclass(frozen=True, slots=True)
class TakeExecutions:
    """What the executions have had to tell since the last such ask. Answer: Executions."""


@dataclass(frozen=True, slots=True)
class TakeFacts:
    """Everything but records that has come in since the last such ask. Answer: Facts."""


@dataclass(frozen=True, slots=True)
class AwaitExecutions:
    """Sleep until an execution has something to tell, for at most so long. Answer: None."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Perform these effects, in their order. Answer: None."""

    effects: list[Effect]


LocalAsk = Fetch | TakeRecords | TakeExecutions | TakeFacts | AwaitExecutions | HandOver


class Executions(NamedTuple):
    """begun: tokens of `timed` executions that a child began with; progress: (token, fraction, message); ended: (token,
    outcome). In this order: one that has ended may have begun and progressed since the last ask, too."""

    begun: Sequence[int] = ()
    progress: Sequence[tuple[int, float | None, str | None]] = ()
    ended: Sequence[tuple[int, Outcome]] = ()


class Facts(NamedTuple):
    """What came in beside the log of requests.

    cancelled   task ids that tasks.control cancels, in its order
    controlled  shards whose ReadControl is done
    recalled    slices of a RecallStatus: (shard, epoch, facts, done)
    probed      what a Probe found: (partition, why it takes nothing or None)
    hold_ms     for so long a broker lets what is sent wait
    """

    cancelled: Sequence[str] = ()
    controlled: Sequence[int] = ()
    recalled: Sequence[tuple[int, int, Sequence[Recalled], bool]] = ()
    probed: Sequence[tuple[Place, str | None]] = ()
    executions: Executions = Executions()
    hold_ms: int = 0
