"""The rules of the audit: every kind of violation it knows, in words. Pure.

The names are part of the report and of the evidence; docs/audit.md lists them.
"""

KINDS = {
    "unreadable_event": "a record of the status topic that is no status event",
    "unreadable_letter": "a record of the dead letter topic that is no dead letter",
    "unknown_origin": "an event or letter of a request record that does not exist",
    "wrong_partition": "an event in another partition than its request's",
    "wrong_key": "an event whose record key is not its task_id",
    "wrong_task_id": "an event whose task_id is not that of its request",
    "created_missing": "a history that does not begin with CREATED",
    "two_created": "two CREATED of one request",
    "two_ends": "two terminal events of one request",
    "event_after_end": "an event after the terminal one",
    "off_machine": "a step that the state machine does not have",
    "attempt_back": "attempt fell",
    "attempt_skipped": "an attempt without a RUNNING of its own, or the first one is not 1",
    "time_back": "updated_at fell, or lies before created_at",
    "created_at_changed": "created_at is not the same in all events",
    "committed_past_unfinished": "an offset is committed past a request that has not ended",
    "committed_beyond_end": "an offset is committed beyond the end of the log",
    "invalid_not_dead": "no valid request, passed by the committed offset, and not in the dead letters",
    "failed_not_dead": "FAILED, but not in the dead letters",
    "dead_twice": "two dead letters of one request that has a history",
    "duplicate_with_history": "refused as a duplicate, yet it has status events",
}
