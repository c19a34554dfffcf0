"""Dead letters run again: which ones, as what, and how fast.

A redrive is a new task per dead letter. Its request is the old one but for: `task_id`, which is a function of the letter
(identity.redriven); the label `redrive_of`, the old task_id; `created_at`, and an `expires_at` that has passed, which are
left out. It lies in the band and the partition number of the old one.

What stays true:
- The same letter gives the same task_id, whoever asks and how often. A letter whose task is known (its request lies in
  the band, or its status events do) is skipped, so a run that broke off is simply repeated.
- Every letter that was chosen is accounted for: ready, known, or refused with the reason.

build.py chooses and builds, and is pure; run.py talks with Kafka.
"""

from streamtask.redrive.build import REDRIVE_OF, Builder, Choice, Plan, Redrive, Refusal, plan, select

__all__ = ["REDRIVE_OF", "Builder", "Choice", "Plan", "Redrive", "Refusal", "plan", "select"]
