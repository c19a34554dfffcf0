"""How long the next batch waits, so that one transaction holds more.

A transaction costs the broker and the worker about as much for 15 tasks as for 60. While one after the other was committed as
soon as anything had ended, two children with tasks of 1 ms left 60 transactions a second, which took more CPU than the tasks.
So a batch is filled for up to FILL_MS after the one before, as long as none of what waits could run earlier without that:

- a backlog waits: the ends that the batch holds are of tasks that have waited for others anyway;
- of each kind of handler of which some have ended, enough others wait in the executor to keep it at work until a transaction
  has started the next ones (core/slot_sharing.py);
- no end makes room that only a claim not started yet can fill: a whole slot, an ordering key, a type with a limit;
- no claim has come that could start at once, as a request of the first band can.

Otherwise, and when tasks come one by one, a batch is built at once. Stops of running handlers never wait for it.
"""

from __future__ import annotations

from streamtask.core.slot_sharing import FILL_MS
from streamtask.core.state import State
from streamtask.domain.ports import Now


def fill_ms(state: State, now: Now) -> int:
    """How long the next batch waits for more, at most; 0: build it now."""
    schedule = state.schedule
    if not state.urgent or state.refusals or state.draining or not schedule.waiting or schedule.arrived():
        return 0
    left_ms = state.settled_mono_ms + FILL_MS - now.mono_ms
    return max(0, min(left_ms, int(schedule.slots.lasts_ms())))
