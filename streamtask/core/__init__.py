"""The pure core: it decides what happens, and touches no bytes, clock, thread, log or Kafka object.

Facts go in; effects and the next transaction come out. A module may import only from those above it in this list:

lifecycle     which status may follow which
ledger        the offsets of one partition; offset_map: their text form; recall: facts from tasks.status when that text is lost
suspects      requests during which processes have died: their groups and trials
shard         one partition number across all its topics: ledgers, head, claims, phase
schedule      which request starts next: bands, priorities, keys, limits; slot_sharing: how much of a slot a start takes
memory        how many bytes are held; weight: the size of one unit of a batch; batch_size: how much one transaction carries
batch         the next transaction: events, dead letters, offsets
refused_places  partitions that accept no records at the moment
state         all engine state, as data; group_commit: how long the next batch waits for more
retry         whether another attempt follows; admission: a request record -> run, wait, end at once, or dead letter
transitions   what may happen to a claim: queue, wait, end, withdraw, cancel, go
timers        the timers of a claim, and what happens when they expire
endings       what happens when an execution has ended
settlement    what the broker's answer to a batch means
intake        turns records into claims, as far as the ledgers have room
set_aside     what happens to a shard whose partition accepts no records
ownership     shards are assigned and taken away
engine        the state, with incoming facts as methods
protocol      the flows: claim, commit, revoke, recovery, as generators of asks
fold          the only rule of the projection
"""
