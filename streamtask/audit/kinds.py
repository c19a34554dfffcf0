"""The rules of the audit: a description of every kind of violation. Pure.

The names are part of the report and of the evidence; docs/audit.md lists them.
"""

KINDS = {
    "unreadable_event": "a record of the status topic is not a status event",
    "unreadable_letter": "a record of the dead letter topic is not a dead letter",
    "unknown_origin": "an event or dead letter refers to a request record that does not exist",
    "wrong_partition": "an event is in a different partition than its request",
    "wrong_key": "the record key of an event is not its task_id",
    "wrong_task_id": "the task_id of an event differs from that of its request",
    "created_missing": "a history does not begin with CREATED",
    "two_created": "a request has two CREATED events",
    "two_ends": "a request has two terminal events",
    "event_after_end": "an event follows the terminal one",
    "off_machine": "a transition that the state machine does not allow",
    "attempt_back": "the attempt number decreased",
    "attempt_skipped": "an attempt has no RUNNING event, or the first attempt is not 1",
    "time_back": "updated_at decreased, or is before created_at",
    "created_at_changed": "created_at differs between events",
    "committed_past_unfinished": "an offset is committed past a request that has not ended",
    "committed_beyond_end": "an offset is committed beyond the end of the log",
    "invalid_not_dead": "an invalid request is below the committed offset, but not in the dead letters",
    "failed_not_dead": "a FAILED task is not in the dead letters",
    "dead_twice": "a request with a history has two dead letters",
    "duplicate_with_history": "a request refused as a duplicate has status events",
}
