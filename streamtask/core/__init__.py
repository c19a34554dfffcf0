"""The pure core: what is decided, without bytes, clock, thread, log line or Kafka object.

engine      the corridor: facts in, effects out; composes the rooms below
protocol    the flows: claim, commit, revoke, recovery, as generators of asks
admission   a request record -> run, wait, end at once, or dead letter
schedule    who starts next: bands, priorities, keys, limits, slots
deadlines   what is due when; timers: what is armed for a claim, and what follows
retry       another attempt or not; suspects and quarantine
shard       one partition number over all its topics: ledgers, head, claims, phase
ledger      offsets of one partition; offset_map: its text
batch       the next transaction: events, dead letters, offsets
lifecycle   which status may follow which
fold        the view's only rule
"""
