"""The pure core: what is decided, without bytes, clock, thread, log line or Kafka object.

Facts go in, effects and the next transaction come out. Imports go downwards in this list, never in a circle:

lifecycle     which status may follow which
ledger        offsets of one partition; offset_map: its text; recall: what tasks.status says where that text is lost
suspects      requests under which processes have died: their groups and trials
shard         one partition number over all its topics: ledgers, head, claims, phase
schedule      who starts next: bands, priorities, keys, limits; slot_sharing: how much of a slot a start takes
memory        how many bytes are held; weight: of a unit of a batch; batch_size: how much one transaction carries
batch         the next transaction: events, dead letters, offsets
refused_places  partitions that take nothing at the moment
state         all of it as data
retry         another attempt or not; admission: a request record -> run, wait, end at once, or dead letter
transitions   what may happen to a claim: queue, wait, end, withdraw, cancel, go
timers        what is armed for a claim, and what follows when it is due
endings       what follows when an execution has ended
settlement    what the broker's answer to a batch means
intake        records become claims, as far as the ledgers have room
set_aside     what follows for a shard whose partition takes nothing
ownership     shards come and go
engine        the state, with the facts that come in as methods
protocol      the flows: claim, commit, revoke, recovery, as generators of asks
fold          the projection's only rule
"""
