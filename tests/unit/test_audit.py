"""The audit's judge over hand-made facts: a clean run is clean, and each broken promise is seen with its evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streamtask.audit import KINDS, Judge, Report, Violation
from streamtask.audit.judge import REFRESH_MS_MIN
from streamtask.audit.places import BLOCK
from streamtask.codec import RequestDecoder, decode_dead, encode_dead, encode_status
from streamtask.config import TopicNames
from streamtask.domain.model import DeadLetter, RequestRecord, StatusEvent, TaskStatus

NAMES = TopicNames()
DECODER = RequestDecoder(NAMES, "cluster-1")
NOW_MS = 1_795_505_160_123
CREATED, RUNNING, COMPLETED = TaskStatus.CREATED, TaskStatus.RUNNING, TaskStatus.COMPLETED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED


class Cluster:
    """Facts as a cluster of one shard (2) would show them; each method writes one record.

    They are fed when the report is asked for: as the audit reads them (requests, events, letters), or as they were
    written, in rounds. It must not matter.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.facts: list[tuple[int, Callable[[Judge], None]]] = []  # (kind, fact): 0 request, 1 event, 2 letter
        self.ends = [0, 0, 0]
        self.status_end = 0
        self.dead_end = 0
        self.now_ms = NOW_MS
        self.told: list[Violation] = []
        self.starts: dict[str, dict[int, int]] = {"status": {}, "dead": {}}
        self.since_ms: int | None = None

    def request(self, band: int = 0, *, task_id: str | None = None, value: bytes | None = None) -> RequestRecord:
        offset = self.ends[band]
        self.ends[band] += 1
        document: dict[str, Any] = {"task_type": "census"} | ({"task_id": task_id} if task_id else {})
        raw = json.dumps(document).encode() if value is None else value
        record = DECODER.decode(band, 2, offset, NOW_MS, None, raw, None)
        self.facts.append((0, lambda judge: judge.request(record)))
        return record

    def event(
        self,
        record: RequestRecord,
        status: TaskStatus,
        attempt: int | None = None,
        *,
        partition: int = 2,
        **fields: Any,
    ) -> None:
        self.now_ms += 1
        told: dict[str, Any] = {
            "task_id": record.task_id,
            "partition": partition,
            "status": status,
            "created_ms": record.created_ms,
            "updated_ms": self.now_ms,
            "origin": f"{NAMES.bands[record.band].name}-{record.partition}@{record.offset}",
            "attempt": attempt,
        }
        event = StatusEvent(**(told | fields))
        self.raw(event.task_id.encode(), encode_status(event, locale="en", worker="w"), partition=partition)

    def raw(self, key: bytes | None, value: bytes | None, *, partition: int = 2) -> None:
        fact = partial(Judge.status, partition=partition, offset=self.status_end, timestamp_ms=self.now_ms)
        self.facts.append((1, lambda judge: fact(judge, key=key, value=value)))
        self.status_end += 1

    def letter(self, record: RequestRecord, reason: str = "handler_error", **fields: Any) -> None:
        origin = f"{NAMES.bands[record.band].name}-{record.partition}@{record.offset}"
        told: dict[str, Any] = {"record": record, "reason": reason, "text": "", "origin": origin}
        letter = DeadLetter(**(told | fields))
        key, value, headers = encode_dead(letter, NAMES, value_bytes_max=10**6, worker="w", failed_at_ms=NOW_MS)
        found = decode_dead(0, self.dead_end, NOW_MS, key, value, headers)
        self.facts.append((2, lambda judge: judge.dead(found)))
        self.dead_end += 1

    def whole(self, record: RequestRecord, *statuses: TaskStatus) -> None:
        for status in statuses or (CREATED, RUNNING, COMPLETED):
            self.event(record, status, None if status in (CREATED, CANCELLED) else 1)

    def report(
        self,
        committed: int | None = None,
        *,
        log_start: int = 0,
        log_end: int | None = None,
        claimed: bool = True,
        unread: str = "",
        begin: int | None = None,
    ) -> Report:
        """Committed offset of band 0 (default: everything)."""
        judge = Judge(NAMES, since_ms=self.since_ms, on_violation=self.told.append)
        judge.starts(**self.starts)
        offsets: list[int | None] = [*self.ends] if claimed else [None] * 3
        offsets[0] = committed if committed is not None and claimed else offsets[0]
        ends = [self.ends[0] if log_end is None else log_end, *self.ends[1:]]

        def bounds(*, fed: bool, passed: bool) -> None:
            for band, end in enumerate(ends):
                start = 0 if band else log_start
                first = start if band or begin is None else begin
                at, read_to = offsets[band] if passed else None, self.ends[band] if fed else 0
                judge.bounds(band, 2, at, log_start=start, log_end=end, begin=first, read_to=read_to)

        bounds(fed=False, passed=False)
        facts = list(self.facts)
        for rest in range(self.rounds, 1, -1):
            size = len(facts) // rest
            while size < len(facts) and facts[size][0] == 2:
                size += 1  # a round has the letters of its ends
            for _, fact in facts[:size]:
                fact(judge)
            judge.conclude()
            facts = facts[size:]
        if self.rounds == 1:
            facts.sort(key=lambda fact: fact[0])
            for _, fact in facts[: sum(kind == 0 for kind, _ in facts)]:
                fact(judge)
            bounds(fed=True, passed=False)
            facts = [(kind, fact) for kind, fact in facts if kind]
        for _, fact in facts:
            fact(judge)
        if unread:
            judge.unread(unread)
        bounds(fed=True, passed=True)
        report = judge.report()
        assert len(self.told) == report.violations_total
        return report


@pytest.fixture(params=[1, 2, 5], ids=["whole", "in-two-rounds", "in-five-rounds"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return Cluster(request.param)


def _kinds(report: Report) -> set[str]:
    assert report.violations_total == sum(report.violations_by_kind.values())
    for violation in report.violations:
        assert violation.text
        assert violation.evidence, violation
    assert not report.clean
    json.dumps(report.to_json())
    return set(report.violations_by_kind)


def test_a_run_in_which_everything_ended_is_clean_and_finished(cluster: Cluster) -> None:
    cluster.whole(cluster.request())
    cluster.whole(cluster.request(1), CREATED, CANCELLED)
    failed = cluster.request(2)
    cluster.whole(failed, CREATED, RUNNING, RUNNING, FAILED)
    cluster.letter(failed)
    cluster.letter(cluster.request(value=b"not json"), "invalid_request")
    first = cluster.request(1, task_id="11111111-2222-4333-8444-555555555555")
    again = cluster.request(1, task_id="11111111-2222-4333-8444-555555555555")
    cluster.whole(first)
    cluster.letter(again, "duplicate")
    report = cluster.report()
    assert report.violations == []
    assert report.clean
    assert report.finished
    assert report.counts == {"completed": 2, "failed": 1, "cancelled": 1}
    assert (report.requests, report.invalid, report.duplicates, report.letters) == (6, 1, 1, 3)
    assert report.to_text().startswith("audit: clean")


def test_retries_raise_the_attempt_by_one_and_progress_keeps_it(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, CREATED)
    for attempt in (1, 1, 2, 2, 3):
        cluster.event(record, RUNNING, attempt)
    cluster.event(record, COMPLETED, 3)
    assert cluster.report().finished


def test_a_task_id_used_again_after_its_end_is_a_history_of_its_own(cluster: Cluster) -> None:
    for _ in range(2):
        cluster.whole(cluster.request(task_id="11111111-2222-4333-8444-555555555555"))
    report = cluster.report()
    assert report.finished
    assert report.counts == {"completed": 2}


# --- Pending, lost, gaps ----------------------------------------------------------------------------------------------


def test_work_above_the_committed_offset_is_pending_with_its_place_and_no_violation(cluster: Cluster) -> None:
    running, created, done, unseen = (cluster.request() for _ in range(4))
    cluster.whole(running, CREATED, RUNNING)
    cluster.whole(created, CREATED)
    cluster.whole(done)
    report = cluster.report(0)
    assert report.clean
    assert not report.finished
    assert [(item.origin, item.status, item.where) for item in report.pending] == [
        ("high-2@0", "running", "at the committed offset"),
        ("high-2@1", "created", "above the committed offset"),
        ("high-2@3", "", "above the committed offset"),
    ]
    assert unseen.task_id in report.to_text()


def test_requests_that_no_worker_ever_claimed_are_pending(cluster: Cluster) -> None:
    cluster.request()
    report = cluster.report(claimed=False)
    assert report.clean
    assert report.pending[0].where == "nothing is committed"


@pytest.mark.parametrize("statuses", [(), (CREATED,), (CREATED, RUNNING)])
def test_an_offset_committed_past_an_unfinished_request_is_a_loss(
    cluster: Cluster, statuses: tuple[TaskStatus, ...]
) -> None:
    record = cluster.request()
    for status in statuses:
        cluster.event(record, status, 1 if status is RUNNING else None)
    report = cluster.report(1)
    assert _kinds(report) == {"committed_past_unfinished"}
    (violation,) = report.violations
    assert violation.origin == "high-2@0"
    assert violation.task_id == record.task_id
    assert violation.evidence["committed"] == 1
    assert violation.evidence["topic"] == "tasks.requests.high"
    assert report.pending_total == 0


def test_a_history_that_never_ended_is_a_loss_even_when_its_request_is_no_longer_held(cluster: Cluster) -> None:
    record = DECODER.decode(0, 2, 3, NOW_MS, None, b'{"task_type": "census"}', None)
    cluster.whole(record, CREATED, RUNNING)
    assert _kinds(cluster.report(10, log_start=10, log_end=10)) == {"committed_past_unfinished"}


def test_a_history_that_ended_is_none_even_when_its_request_is_no_longer_held(cluster: Cluster) -> None:
    cluster.whole(DECODER.decode(0, 2, 3, NOW_MS, None, b'{"task_type": "census"}', None))
    assert cluster.report(10, log_start=10, log_end=10).finished


def test_what_retention_took_before_it_was_finished_is_a_gap_and_no_violation(cluster: Cluster) -> None:
    report = cluster.report(4, log_start=9, log_end=9)
    assert report.clean
    assert [gap.to_json() for gap in report.gaps] == [
        {"topic": "tasks.requests.high", "partition": 2, "start": 4, "end": 9}
    ]
    assert "4..8" in report.to_text()


def test_an_offset_committed_beyond_the_end_of_the_log_is_seen(cluster: Cluster) -> None:
    assert _kinds(cluster.report(7, log_end=5)) == {"committed_beyond_end"}


def test_an_invalid_record_has_to_be_in_the_dead_letters_once_it_was_passed(cluster: Cluster) -> None:
    cluster.request(value=b"not json")
    assert _kinds(cluster.report(1)) == {"invalid_not_dead"}


def test_an_invalid_record_that_was_not_passed_yet_is_pending(cluster: Cluster) -> None:
    cluster.request(value=b"not json")
    report = cluster.report(0)
    assert report.clean
    assert report.pending_total == 1


# --- Histories off the machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((CREATED, COMPLETED), "off_machine"),
        ((CREATED, FAILED), "off_machine"),
        ((CREATED, CREATED, RUNNING, COMPLETED), "two_created"),
        ((CREATED, RUNNING, CREATED, RUNNING, COMPLETED), "two_created"),
        ((CREATED, RUNNING, COMPLETED, CREATED), "two_created"),
        ((CREATED, RUNNING, COMPLETED, COMPLETED), "two_ends"),
        ((CREATED, RUNNING, COMPLETED, FAILED), "two_ends"),
        ((CREATED, CANCELLED, CANCELLED), "two_ends"),
        ((CREATED, RUNNING, COMPLETED, RUNNING), "event_after_end"),
        ((CREATED, CANCELLED, RUNNING), "event_after_end"),
    ],
)
def test_a_history_off_the_machine_is_seen(cluster: Cluster, statuses: tuple[TaskStatus, ...], kind: str) -> None:
    record = cluster.request()
    for status in statuses:
        cluster.event(record, status, 1 if status is RUNNING else None)
    if FAILED in statuses:
        cluster.letter(record)
    report = cluster.report()
    assert _kinds(report) == {kind}
    assert report.violations[0].evidence["topic"] == "tasks.status"
    assert report.violations[0].evidence["before"]["status"] in {status.value for status in statuses}


def test_the_first_end_stays_the_end(cluster: Cluster) -> None:
    cluster.whole(cluster.request(), CREATED, RUNNING, COMPLETED, CANCELLED)
    assert cluster.report().counts == {"completed": 1}


@pytest.mark.parametrize("first", [RUNNING, COMPLETED, CANCELLED])
def test_a_history_without_created_is_seen_where_compaction_cannot_explain_it(
    cluster: Cluster, first: TaskStatus
) -> None:
    cluster.whole(cluster.request())
    record = cluster.request()
    cluster.event(record, first, None)
    if first is RUNNING:
        cluster.event(record, COMPLETED, None)
    assert _kinds(cluster.report()) == {"created_missing"}


def test_a_history_that_compaction_has_shortened_is_counted_and_no_violation(cluster: Cluster) -> None:
    cluster.event(cluster.request(), COMPLETED, 1)
    cluster.event(cluster.request(), COMPLETED, 2)
    cluster.whole(cluster.request())
    report = cluster.report()
    assert report.finished
    assert report.truncated == 2


def test_a_first_history_that_compaction_has_removed_for_a_later_one_of_its_task_id_is_no_loss(
    cluster: Cluster,
) -> None:
    task_id = "11111111-2222-4333-8444-555555555555"
    cluster.request(task_id=task_id)
    cluster.event(cluster.request(task_id=task_id), COMPLETED, 1)
    cluster.whole(cluster.request())
    report = cluster.report()
    assert report.finished
    assert report.truncated == 2


def test_a_lost_first_history_is_seen_when_compaction_cannot_have_removed_it(cluster: Cluster) -> None:
    task_id = "11111111-2222-4333-8444-555555555555"
    cluster.whole(cluster.request())
    cluster.request(task_id=task_id)
    cluster.whole(cluster.request(task_id=task_id))
    assert _kinds(cluster.report()) == {"committed_past_unfinished"}


def test_a_status_log_cut_by_retention_explains_missing_beginnings(cluster: Cluster) -> None:
    cluster.whole(cluster.request())
    cluster.event(cluster.request(), COMPLETED, 1)
    cluster.starts["status"] = {2: 100}
    report = cluster.report()
    assert report.finished
    assert report.truncated == 1


def test_created_published_again_for_a_task_that_waits_for_days_is_a_refresh(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, CREATED)
    cluster.now_ms += REFRESH_MS_MIN
    cluster.event(record, CREATED)
    cluster.whole(record, RUNNING, COMPLETED)
    report = cluster.report()
    assert report.finished
    assert report.refreshed == 1


@pytest.mark.parametrize(
    ("attempts", "kind"),
    [
        ((2,), "attempt_skipped"),
        ((1, 3), "attempt_skipped"),
        ((1, 2, 1), "attempt_back"),
    ],
)
def test_attempts_begin_with_one_and_never_fall_nor_skip(
    cluster: Cluster, attempts: tuple[int, ...], kind: str
) -> None:
    record = cluster.request()
    cluster.event(record, CREATED)
    for attempt in attempts:
        cluster.event(record, RUNNING, attempt)
    cluster.event(record, COMPLETED)
    assert _kinds(cluster.report()) == {kind}


def test_an_end_of_an_attempt_that_never_ran_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.whole(record, CREATED, RUNNING)
    cluster.event(record, COMPLETED, 2)
    assert _kinds(cluster.report()) == {"attempt_skipped"}


def test_an_end_of_an_earlier_attempt_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.whole(record, CREATED, RUNNING)
    cluster.event(record, RUNNING, 2)
    cluster.event(record, COMPLETED, 1)
    assert _kinds(cluster.report()) == {"attempt_back"}


def test_updated_at_that_falls_is_seen_and_an_equal_one_is_not(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, CREATED, updated_ms=NOW_MS + 10)
    cluster.event(record, RUNNING, 1, updated_ms=NOW_MS + 10)
    cluster.event(record, COMPLETED, 1, updated_ms=NOW_MS + 9)
    report = cluster.report()
    assert _kinds(report) == {"time_back"}
    assert report.violations_total == 1


def test_updated_at_before_created_at_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, CREATED, updated_ms=NOW_MS - 1)
    cluster.whole(record, RUNNING, COMPLETED)
    assert _kinds(cluster.report()) == {"time_back"}


def test_created_at_that_moves_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.whole(record, CREATED, RUNNING)
    cluster.event(record, COMPLETED, 1, created_ms=NOW_MS - 5)
    assert _kinds(cluster.report()) == {"created_at_changed"}


# --- Events that belong nowhere ---------------------------------------------------------------------------------------


def test_an_event_in_another_partition_than_its_requests_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.whole(record, CREATED, RUNNING)
    cluster.event(record, COMPLETED, 1, partition=5)
    report = cluster.report()
    assert _kinds(report) == {"wrong_partition", "committed_past_unfinished"}
    assert report.violations[0].evidence["partition"] == 5


def test_an_event_in_another_partition_is_no_part_of_its_history_whichever_was_read_first(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, COMPLETED, 1, partition=5)
    cluster.whole(record)
    assert _kinds(cluster.report()) == {"wrong_partition"}


def test_an_event_under_another_key_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, CREATED)
    cluster.event(record, RUNNING, 1)
    event = StatusEvent(record.task_id, 2, COMPLETED, record.created_ms, cluster.now_ms + 1, "high-2@0", attempt=1)
    cluster.raw(b"other", encode_status(event, locale="en", worker="w"))
    assert _kinds(cluster.report()) == {"wrong_key"}


def test_an_event_with_the_task_id_of_another_task_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.event(record, CREATED)
    cluster.event(record, CANCELLED, task_id="11111111-2222-4333-8444-555555555555")
    assert _kinds(cluster.report()) == {"wrong_task_id"}


def test_a_history_under_another_task_id_than_its_requests_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    for status in (CREATED, CANCELLED):
        cluster.event(record, status, task_id="11111111-2222-4333-8444-555555555555")
    assert _kinds(cluster.report()) == {"wrong_task_id"}


@pytest.mark.parametrize("origin", ["high-2@99", "purple-2@0", "", "high-2"])
def test_an_event_of_a_request_that_does_not_exist_is_seen(cluster: Cluster, origin: str) -> None:
    record = cluster.request()
    cluster.whole(record)
    cluster.event(record, CREATED, origin=origin, task_id="11111111-2222-4333-8444-555555555555")
    assert "unknown_origin" in _kinds(cluster.report())


@pytest.mark.parametrize("value", [None, b"", b"{}", b"not json"])
def test_what_is_no_status_event_is_seen(cluster: Cluster, value: bytes | None) -> None:
    cluster.raw(b"k", value)
    assert _kinds(cluster.report()) == {"unreadable_event"}


# --- Dead letters -----------------------------------------------------------------------------------------------------


def test_failed_without_a_dead_letter_is_seen(cluster: Cluster) -> None:
    cluster.whole(cluster.request(), CREATED, RUNNING, FAILED)
    assert _kinds(cluster.report()) == {"failed_not_dead"}


def test_two_dead_letters_of_one_request_are_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.whole(record, CREATED, RUNNING, FAILED)
    cluster.letter(record)
    cluster.letter(record)
    assert _kinds(cluster.report()) == {"dead_twice"}


@pytest.mark.parametrize("letters_first", [False, True])
def test_a_second_letter_beside_a_history_is_seen_whichever_was_read_first(
    cluster: Cluster, letters_first: bool
) -> None:
    record = cluster.request()
    if not letters_first:
        cluster.whole(record, CREATED, RUNNING, FAILED)
    cluster.letter(record)
    cluster.letter(record)
    if letters_first:
        cluster.whole(record, CREATED, RUNNING, FAILED)
    report = cluster.report()
    assert (_kinds(report), report.repeats_total) == ({"dead_twice"}, 0)


def test_a_record_that_never_was_a_task_and_is_refused_again_after_a_recovery_is_counted_and_no_breach(
    cluster: Cluster,
) -> None:
    """Bug: the audit said exit code 1 after the group's offsets were lost, though nothing could have known better."""
    record = cluster.request(value=b"no request")
    cluster.letter(record, "invalid_request")
    cluster.letter(record, "invalid_request")
    report = cluster.report()
    assert report.clean, report.to_text()
    assert (report.letters, report.repeats_total) == (2, 1)
    assert "refused again" in report.to_text()


def test_a_duplicate_that_has_status_events_is_seen(cluster: Cluster) -> None:
    record = cluster.request()
    cluster.whole(record)
    cluster.letter(record, "duplicate")
    assert _kinds(cluster.report()) == {"duplicate_with_history"}


def test_a_dead_letter_of_a_request_that_does_not_exist_is_seen(cluster: Cluster) -> None:
    record = cluster.request(value=b"x")
    cluster.letter(record)
    record.offset = 50
    cluster.letter(record)
    assert _kinds(cluster.report()) == {"unknown_origin"}


def test_a_record_that_is_no_dead_letter_is_seen(cluster: Cluster) -> None:
    cluster.facts.append((2, lambda judge: judge.unreadable_letter(0, 7, "no reason")))
    assert _kinds(cluster.report()) == {"unreadable_letter"}


def test_a_request_whose_schema_its_worker_did_not_get_may_have_ended_under_another_id(cluster: Cluster) -> None:
    """It knew only the id in header or key."""
    record = cluster.request(task_id="11111111-2222-4333-8444-555555555555")
    for status in (CREATED, RUNNING, FAILED):
        cluster.event(record, status, 1 if status is RUNNING else None, task_id="22222222-2222-4333-8444-555555555555")
    cluster.letter(record, "schema_unavailable")
    assert cluster.report().finished


def test_what_was_told_once_is_not_told_in_the_next_round() -> None:
    judge = Judge(NAMES)
    for offset in range(2):
        judge.request(DECODER.decode(0, 2, offset, NOW_MS, None, b'{"task_type": "census"}', None))
    for committed in (1, 1, 2, 2):
        judge.bounds(0, 2, committed, log_start=0, log_end=2, read_to=2)
        judge.conclude()
    assert [violation.origin for violation in judge.report().violations] == ["high-2@0", "high-2@1"]


# --- A window of time -------------------------------------------------------------------------------------------------


@pytest.fixture
def window(cluster: Cluster) -> Cluster:
    """One that began with a whole history, long after the beginning of the topics."""
    cluster.since_ms = NOW_MS - 3_600_000
    cluster.starts["status"] = {2: 100}
    cluster.whole(cluster.request())
    return cluster


def test_a_history_that_began_before_the_window_is_counted_and_no_violation(window: Cluster) -> None:
    window.ends[0] = 5
    before = DECODER.decode(0, 2, 3, NOW_MS, None, b'{"task_type": "census"}', None)
    window.event(before, COMPLETED, 3)
    report = window.report(begin=4)
    assert report.finished
    assert report.truncated == 1


def test_a_young_request_must_have_its_created_and_its_end_inside_of_the_window(window: Cluster) -> None:
    window.event(window.request(), COMPLETED, 1)
    window.request()
    assert _kinds(window.report()) == {"created_missing", "committed_past_unfinished"}


def test_a_request_about_as_old_as_the_window_may_have_them_before_it(window: Cluster) -> None:
    """Its time is that of its producer's clock."""
    window.since_ms = NOW_MS - 60_000
    window.event(window.request(), COMPLETED, 1)
    window.request()
    report = window.report()
    assert report.finished
    assert report.truncated == 2


def test_a_loss_of_what_was_running_inside_of_the_window_is_seen(window: Cluster) -> None:
    window.since_ms = NOW_MS
    window.event(window.request(), RUNNING, 2)
    assert _kinds(window.report()) == {"committed_past_unfinished"}


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_of_a_finished_task_a_few_bytes_are_kept(cluster: Cluster) -> None:
    """Not its ids, once everything around it has ended; and no object of its own."""
    judge = Judge(NAMES)
    count = 3 * BLOCK
    judge.bounds(0, 2, count, log_start=0, log_end=count)
    for _ in range(count):
        cluster.request()
    for number in range(count):
        record = DECODER.decode(0, 2, number, NOW_MS, None, b'{"task_type": "census"}', None)
        cluster.whole(record)
    for _, fact in cluster.facts:
        fact(judge)
    judge.bounds(0, 2, count, log_start=0, log_end=count, read_to=count)
    assert judge.report().finished
    (cell,) = judge._cells.values()
    assert cell.open == {}
    # The first one has its ids: what of it compaction may have taken is only known when two events of a task were seen.
    assert [block.ids is None for block in cell.blocks.values()] == [False, True, True]
    assert [len(block.states) * block.states.itemsize for block in cell.blocks.values()] == [2 * BLOCK] * 3


def test_an_origin_far_beyond_the_end_of_its_log_costs_no_memory(cluster: Cluster) -> None:
    judge = Judge(NAMES)
    judge.bounds(0, 2, None, log_start=0, log_end=10)
    for number in range(50):
        event = StatusEvent(
            "11111111-2222-4333-8444-555555555555", 2, CREATED, 0, 0, f"high-2@{10**12 + number * BLOCK}"
        )
        judge.status(2, number, NOW_MS, event.task_id.encode(), encode_status(event, locale="en", worker="w"))
    assert _kinds(judge.report()) == {"unknown_origin"}
    assert all(not cell.blocks for cell in judge._cells.values())


# --- The report -------------------------------------------------------------------------------------------------------


def test_what_was_not_read_to_its_end_proves_nothing_but_is_not_clean(cluster: Cluster) -> None:
    cluster.request()
    report = cluster.report(1, unread="tasks.status [2] was read to 0 of 9")
    assert report.violations == []
    assert not report.clean
    assert "0 of 9" in report.to_text()


def test_every_violation_is_counted_though_not_every_one_is_listed(cluster: Cluster) -> None:
    for _ in range(1_500):
        cluster.request()
    report = cluster.report(1_500)
    assert report.violations_total == 1_500
    assert len(report.violations) == 1_000
    assert "1480 more violations" in report.to_text()
    assert report.to_json()["violations"] == 1_500


def test_each_kind_of_violation_has_a_test_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}"' not in source] == []


def test_the_page_of_the_audit_has_each_rule_in_these_words() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| `{kind}` | {meaning} |" for kind, meaning in KINDS.items())
    assert f"<!-- rules -->\n| rule | |\n|---|---|\n{rows}\n<!-- /rules -->" in page
