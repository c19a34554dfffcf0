"""Runs dead letters again: which ones, as which tasks, and how fast.

A redrive makes a new task from each dead letter. Its request is the old one with these changes: `task_id` is a function of
the letter (identity.redriven); the label `redrive_of` has the old task_id; `created_at` is left out, and so is an
`expires_at` that has passed. The request goes to the band and the partition number of the old one.

Always true:
- The same letter gives the same task_id, whoever asks and however often. A letter whose task is known (its request is in
  the band, or its status events exist) is skipped, so a run that was interrupted is simply repeated.
- Every selected letter is accounted for: ready, known, or refused with the reason.

build.py selects and builds, and is pure; run.py talks to Kafka.
"""

from streamtask.redrive.build import REDRIVE_OF, Builder, Choice, Plan, Redrive, Refusal, plan, select

__all__ = ["REDRIVE_OF", "Builder", "Choice", "Plan", "Redrive", "Refusal", "plan", "select"]
