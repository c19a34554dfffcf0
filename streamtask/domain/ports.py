"""The border of the core: what it asks of the outside, what it receives, and the effects it leaves behind.

The core talks to the outside in two ways.

**Asks** are steps whose answer decides the next step: the broker calls of a claim, transaction, revoke or recovery, and what
has come in since the last turn. The flows in core/protocol.py and core/turn.py are generators that *yield* an ask and are
*sent* its answer. The core decides the order; its driver (worker/loop.py with a real broker, tests/sim with a model) only
performs. Between any two asks of the broker the world may change; the simulation interrupts there.

**Effects** have no answer: start a handler, stop one, pause a partition, note a fact for the operator.

A *cell* is one request partition: (index of the band, shard). Band 0 is the lead band. Times: Now carries both clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from msgspec import Struct

from streamtask.domain.model import DeadLetter, HandlerKind, Outcome, RequestRecord, StatusEvent

Cell = tuple[int, int]


class Now(NamedTuple):
    """wall_ms: milliseconds since the epoch, may jump; mono_ms: monotonic milliseconds of this process."""

    wall_ms: int
    mono_ms: int


class Expected(NamedTuple):
    """What the engine expects of one cell.

    received: next offset from the log; backlog: its records that are not admitted yet; held: why nothing should come from it
    now, "" if it should deliver.
    """

    received: int
    backlog: int = 0
    held: str = ""


# --- Answers ----------------------------------------------------------------------------------------------------------


class FaultKind(Enum):
    """What went wrong with an ask, classified by what may be done next."""

    RETRY = "retry"  #: nothing was changed (or nothing that matters); the same ask may be repeated after a poll
    UNSTABLE = "unstable"  #: an open transaction blocks the committed offsets until its deadline
    ABORT = "abort"  #: the transaction has to be aborted; its batch can be rebuilt and sent again
    RECORD = "record"  #: as ABORT, but caused by a record (too large, refused): the same batch would fail again
    STALE = "stale"  #: as ABORT: the broker no longer knows this member or its generation; poll
    FENCED = "fenced"  #: this transactional id is over (another owner claimed a shard, or a fatal error): renew it
    DOUBT = "doubt"  #: the call may or may not have taken effect, or a copy of it may still arrive later


Place = tuple[str, int]  # ("status", shard) or ("dead", partition of tasks.dead); DEAD: tasks.dead as a whole
STATUS, LETTERS = "status", "dead"
DEAD: Place = (LETTERS, -1)


@dataclass(frozen=True, slots=True)
class Fault:
    """The answer to an ask that failed. `text` is for the operator.

    places  the partitions that refused a record or did not answer, if known
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
    """A stable committed offset with its metadata, and the bounds of the log, read after it.

    log_start, log_end  first offset held, and the high watermark (the *uncommitted* end); UNKNOWN while the partition has no
                        leader
    """

    offset: int | None
    text: str | None
    log_start: int
    log_end: int

    @property
    def led(self) -> bool:
        """Whether the partition has a leader, so that the bounds of its log are known."""
        return self.log_end != UNKNOWN


class OffsetCommit(NamedTuple):
    """An offset to commit for one cell, with its ledger text."""

    band: int
    shard: int
    offset: int
    text: str


@dataclass(slots=True)
class CommitPlan:
    """One transaction: produce `events` and `dead`, flush, send `offsets`, commit.

    Fence rule: `offsets` contains the lead cell of every shard that `events` or `dead` touches.

    avoid  partitions of tasks.dead that accept no records at the moment: dead letters go to the others
    """

    events: list[StatusEvent] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    offsets: list[OffsetCommit] = field(default_factory=list)
    shards: tuple[int, ...] = ()
    avoid: frozenset[int] = frozenset()


# --- Asks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListOffsets:
    """Claim 1: what is committed now, ignoring pending transactions. Answer: {cell: Committed}."""

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
    """From now on read these cells from these offsets. Answer: None."""

    positions: Mapping[Cell, int]


@dataclass(frozen=True, slots=True)
class Produce:
    """Begin a transaction and give the plan's events and dead letters to the client. Answer: None or a Fault."""

    plan: CommitPlan


@dataclass(frozen=True, slots=True)
class Waiting:
    """The answer to a Flush that is not done yet: the broker has acknowledged all of `produced` records but `left`."""

    left: int
    produced: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Wait until the broker has the plan's records. Answer: None, Waiting or a Fault.

    wait_ms  how long this call may wait; after that the answer is Waiting, and the flow asks again
    last     True: stop waiting for good; unacknowledged records give Fault(FENCED) with their places

    Records and reports of executions arrive during this wait (core/turn.py). What they owe belongs to the next batch.
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
    """Commit. Answer: None; Fault(DOUBT) if it timed out or took longer than the socket timeout, even if it succeeded."""


@dataclass(frozen=True, slots=True)
class AbortTransaction:
    """Abort. Answer: None or Fault(FENCED | RETRY)."""


@dataclass(frozen=True, slots=True)
class RenewProducer:
    """Replace the transactional producer by one with a new id. Answer: the id (str), or Fault(RETRY).

    patient  the link is slow: its transactions may last as long as the slowest flush
    """

    patient: bool = False


@dataclass(frozen=True, slots=True)
class Poll:
    """Serve the group once: revoke, lost and assign callbacks may run inside. Answer: None."""


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Leave the group and join again, so that a late copy of a claim commit cannot land later. Answer: None."""


@dataclass(frozen=True, slots=True)
class AwaitEnded:
    """Revoke: these executions were stopped; wait for them within the revoke's deadline (core/turn.py does).

    Their endings reach the engine (Engine.ended) before the answer, which is None even if some still run.
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
Answer = Any  # the type that the docstring of the ask names, or Fault


# --- Effects ----------------------------------------------------------------------------------------------------------


class StopReason(Enum):
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    NOT_BEGUN = "not begun"  #: no child process has started it in time: it runs again
    REVOKE = "revoke"  #: the shard moves elsewhere; the attempt is given up here


class Start(Struct, gc=False):
    """Start a handler: RUNNING with this attempt is committed.

    token      identifies this execution in Executions and Stop; never reused in a process
    timeout_ms the attempt's time limit, resolved by the engine, which also keeps the clock; None: no limit. It counts from
               the start of the handler, which is reported if it is `late` (Engine.begun)
    group      two processes have died under it: run it, whatever its kind, in the quarantine child of this number, with all
               others of this group, so that it cannot take the worker down; 0: it runs as its kind does
    shares     its type is short and shares slots: it may wait in the executor while others run, and a child may receive
               several of these at once
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
        """Whether the start time of its handler matters: it has a time limit, or may be on trial."""
        return self.timeout_ms is not None or self.group > 0

    @property
    def in_child(self) -> bool:
        """Whether its handler starts in a child process, and therefore later than it is handed over."""
        return self.kind is HandlerKind.PROCESS or self.group > 0

    @property
    def late(self) -> bool:
        """Whether its handler may start later than it is handed over."""
        return self.in_child or self.shares


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop this execution: cancel a coroutine, kill a process, notify a thread. Its slot is busy until it has ended."""

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
    """Read tasks.control to its present high watermark, then answer with these shards (Facts.controlled)."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecallStatus:
    """Read the shard's partition of tasks.status from its start to its present high watermark, and answer in slices
    (Facts.recalled). Other shards keep working.
    """

    shard: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask these partitions, outside this worker's transactions, whether they accept records; answered by Facts.probed."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for the operator: the name of a log event (observability/event_log.py) and its fields."""

    name: str
    fields: Mapping[str, Any]


Effect = Start | Stop | Pause | Resume | ReadControl | RecallStatus | Probe | Note


class Recalled(NamedTuple):
    """One status event, read back from tasks.status while a shard recovers its position."""

    origin: str
    task_id: str
    ended: bool
    attempt: int
    updated_ms: int


# --- Asks within the process ------------------------------------------------------------------------------------------
#
# core/turn.py also yields these: no broker answers them, and none of them fails.


@dataclass(frozen=True, slots=True)
class Fetch:
    """Serve the group as Poll does, then fetch requests. The performer decides how long. Answer: whether any came (bool)."""


@dataclass(frozen=True, slots=True)
class TakeRecords:
    """What has been fetched. Answer: [RequestRecord].

    bands  take only records of the first so many bands, the rest at the next ask; None: take all
    """

    bands: int | None = None


@dataclass(frozen=True, slots=True)
class TakeExecutions:
    """What the executions have reported since the last such ask. Answer: Executions."""


@dataclass(frozen=True, slots=True)
class TakeFacts:
    """Everything except records that has come in since the last such ask. Answer: Facts."""


@dataclass(frozen=True, slots=True)
class AwaitExecutions:
    """Sleep until an execution reports something, at most this long. Answer: None."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Perform these effects in order. Answer: None."""

    effects: list[Effect]


LocalAsk = Fetch | TakeRecords | TakeExecutions | TakeFacts | AwaitExecutions | HandOver


class Executions(NamedTuple):
    """Reports of executions.

    begun: tokens of executions that are `late` and `timed` and start now; progress: (token, fraction, message); ended: (token,
    outcome). In this order: one that has ended may also have begun and progressed since the last ask.
    """

    begun: Sequence[int] = ()
    progress: Sequence[tuple[int, float | None, str | None]] = ()
    ended: Sequence[tuple[int, Outcome]] = ()


class Facts(NamedTuple):
    """What has come in from elsewhere than the request topics.

    cancelled   task ids that tasks.control cancels, in the order of that topic
    controlled  shards whose ReadControl is done
    recalled    slices of a RecallStatus: (shard, epoch, facts, done)
    probed      results of a Probe: (partition, why it accepts no records, or None)
    hold_ms     how long a broker throttles what is sent
    """

    cancelled: Sequence[str] = ()
    controlled: Sequence[int] = ()
    recalled: Sequence[tuple[int, int, Sequence[Recalled], bool]] = ()
    probed: Sequence[tuple[Place, str | None]] = ()
    executions: Executions = Executions()
    hold_ms: int = 0
