"""Reads a live cluster back and judges every history. It shares the models, the codec and the plain topic readers with the
worker, but no rule, so that it can disagree with it.

judge.py decides what one event shows, and conclusions.py what only the whole shows, with the memory of places.py (all
pure). report.py holds the result. reading.py fetches the facts in rounds; following.py repeats that beside a running
system.
"""

from streamtask.audit.following import follow_audit
from streamtask.audit.judge import Judge
from streamtask.audit.kinds import KINDS
from streamtask.audit.reading import run_audit
from streamtask.audit.report import Gap, Pending, Report, Violation

__all__ = ["KINDS", "Gap", "Judge", "Pending", "Report", "Violation", "follow_audit", "run_audit"]
