//! The rules of the protocol as switches. `Cfg::built()` is what the code does now; a run names the switches that it flips.
//! docs/decisions/0012-protocol-model.md has the same list beside the functions of the code; a test holds the two equal.

macro_rules! rules {
    ($($name:ident = $built:literal : $text:literal,)*) => {
        #[derive(Clone, Copy, Debug)]
        pub struct Cfg { $(pub $name: bool,)* }
        pub const RULES: &[(&str, bool, &str)] = &[$((stringify!($name), $built, $text),)*];
        impl Cfg {
            pub fn built() -> Cfg { Cfg { $($name: $built,)* } }
            /// False: there is no such switch.
            pub fn flip(&mut self, name: &str) -> bool {
                match name { $(stringify!($name) => self.$name = !self.$name,)* _ => return false }
                true
            }
        }
    };
}

rules! {
    // Parts: what is modelled in a run beside the core of the protocol.
    sched = false: "part: tasks.schedule (a rule of the design; not built yet)",
    iso = false: "part: suspects, trials, and who is charged",
    child = false: "part: suspects run in quarantine children, in groups (with iso)",
    proc = false: "part: every handler is a process handler: it has a child from its first attempt on (with iso)",
    innocent = false: "part: nobody but r0 kills, so nobody but r0 may be quarantined (with iso)",
    quick = false: "part: r0 kills, if at all, before its trial is over (with iso)",
    full = false: "part: a suspect after 2 deaths, quarantined after 3; else after 1 and 2, which takes fewer steps",
    pos = false: "part: the log's bounds, lost group offsets, tasks.status as the witness",
    bands = false: "part: the second request lies in another band, with a ledger of its own",
    threads = false: "part: handlers cannot be ended, only told: they run on after revoke and lost",
    // Claim.
    fence = true: "step 2: the recorded owner is fenced",
    fence_after = false: "mutation: step 2 after step 3",
    fence_clean = false: "variant: step 2 also for a clean owner",
    fence_decided = false: "variant: step 2 does not wait for the markers of what is decided",
    fence_former = true: "step 2 also for the id that this same worker used before",
    stable = true: "step 3 waits for pending offsets",
    txn_claim = false: "mutation: step 4 is a transaction",
    claim_commit = true: "step 4 at all",
    deadline = true: "a claim that waits too long begins again at step 1, after a poll",
    same_id = true: "such a claim keeps the transactional id; off: a new one each time",
    rejoin_slow = true: "a claim commit that may have left a copy in the network: leave the group, join again",
    // Transaction and recovery.
    write_ahead = true: "a handler starts only after its RUNNING is committed",
    fence_rule = true: "every transaction sends the lead cell's offset",
    late_meta = false: "variant: group metadata taken right before the offsets are sent, not after the last poll",
    recycle_slow = true: "a commit that may have left a copy in the network ends its id",
    unique_ids = true: "no transactional id is used twice; off: all workers share one",
    poll_first = true: "after a fatal error: poll, then a new producer",
    reclaim = true: "a new id claims again",
    read_back = true: "id and sequence tell whether the batch in doubt landed",
    keep_batch_id = true: "the batch in doubt is asked for by the id that it was sent under; off: by the new one",
    own_filter = true: "results of a lost shard are dropped",
    // Revoke.
    end_first = true: "handlers are ended before the clean record is committed",
    revoke_waits = true: "revoke returns when its clean record is stable",
    // Deaths.
    mark = true: "a running mark in the ledger; off: everybody who has started is charged",
    charge_late = false: "mutation (without mark): the charge is written with the next start, not with the claim",
    child_counts = true: "a child's death is charged to its task",
    child_clears = true: "the transaction that charges a child's death clears the mark",
    lives = true: "a claim of what this same process recorded charges nobody: it has not died, it was fenced",
    parted = true: "the death of a child is charged to who was alone in it; of several, each gets a child of its own next",
    forgive = true: "who outlives its trial is acquitted: its deaths are forgiven",
    trial_alone = true: "a death in a trial that is stood alone is charged to that one alone",
    spare = true: "a worker's death takes no suspect further; the trials of those that it met are narrower",
    one_trial = true: "who met a worker's death on trial stands the next one without another suspect",
    alone = true: "only a worker's death in a trial stood alone convicts; off: one in any trial",
    held = true: "nothing else starts beside a trial that is stood alone, and what runs is waited for",
    // Positions.
    bounds = true: "what the committed text says is held to the bounds of the log",
    skip = true: "a claim goes on at the log start: open requests that the log lost are dropped",
    goes_on = true: "so does an owner whose next record is gone",
    recall = true: "nothing committed, or not believable: tasks.status is read first",
    recall_end = true: "it is read to the high watermark; off: to the last stable offset",
    says_recovering = true: "until all of that stands in the ledger, the head says recovering",
    close_recovering = true: "so does a clean hand-over",
    by_id = true: "a fact of tasks.status counts only for the task_id that it names; off: for any record of its origin",
    // Second band.
    lead = true: "a batch sends the lead cell even if only another cell has changed",
    one_txn = true: "all cells of a batch go in one transaction; off: the other one by a plain commit after it",
    claim_cells = true: "the claim commit writes all cells; off: the lead alone",
    close_cells = true: "the clean commit clears the marks of all cells; off: of the lead alone",
    whole_head = true: "the first head that no longer says recovering comes with all cells",
    // tasks.schedule.
    sched_early = false: "mutation: the schedule is read before fencing",
    sched_hw = true: "it is read to the high watermark; off: to the last stable offset",
    sched_start = true: "a start from the schedule rewrites its record in the same transaction",
    sched_clean = true: "the clean commit rewrites the records of what runs from the schedule",
}

impl Cfg {
    /// Deaths that make a suspect.
    pub fn suspect(&self) -> u8 { if self.full { 2 } else { 1 } }
    /// Deaths that end a request.
    pub fn lost_max(&self) -> u8 { if self.full { 3 } else { 2 } }
    /// The cells, each with its requests in the order of their offsets.
    pub fn cells(&self) -> &'static [&'static [usize]] { if self.bands { &[&[0], &[1]] } else { &[&[0, 1]] } }
    /// All cells as a mask; bit 0 is the lead.
    pub fn all(&self) -> u8 { if self.bands { 3 } else { 1 } }
}
