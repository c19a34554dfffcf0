//! What the model remembers: the broker (group, transactions, offsets, status log), the workers, the faults left,
//! and ghost variables that only the invariants read.
pub const W: usize = 2; // worker slots; a slot that crashed is restarted as a new process
pub const R: usize = 2; // requests; both in the lead cell, or one in each of two cells

macro_rules! small { ($($i:item)*) => { $(#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)] $i)* } }

/// Name in a run's fault list, and the field.
macro_rules! faults {
    ($($word:literal $name:ident : $text:literal,)*) => {
        small! { pub struct Faults { $(pub $name: u8,)* } }
        pub const F0: Faults = Faults { $($name: 0,)* };
        pub const FAULTS: &[(&str, &str)] = &[$(($word, $text),)*];
        impl Faults {
            pub fn field(&mut self, word: &str) -> Option<&mut u8> { match word { $($word => Some(&mut self.$name),)* _ => None } }
        }
    };
}

faults! {
    "crash" crash: "a process dies",
    "freeze" freeze: "a process is stopped anywhere; wakes anywhere or never; its session may end",
    "expire" expire: "the session of a live worker ends",
    "move" moves: "a rebalance moves the shard",
    "amb" amb: "EndTxn applied and its answer lost, or late by any time",
    "tmo" tmo: "the transaction timeout of a live worker",
    "fence" fence: "another shard's claim fences a live id",
    "dup" dup: "a copy of EndTxn stays in the network",
    "dupc" dupc: "a copy of the plain claim commit stays in the network",
    "retry" retry: "a handler fails and is retried soon",
    "prog" prog: "a handler reports progress",
    "cancel" cancel: "a client cancels",
    "long" long: "a handler fails and is retried much later (with sched)",
    "kill" kill: "r0's handler kills its process: the child if it has one, and who is in it too, else the worker (with iso)",
    "slay" slay: "r0's handler kills the worker, child or not (with iso)",
    "del" del: "retention: the log start moves past a request (with pos)",
    "forget" forget: "the group's offsets expire while it is empty (with pos)",
    "trunc" trunc: "the log ends earlier than it did, and new requests come once an owner has sought (with pos)",
    "recreate" recreate: "the topic is made anew, and new requests come before an owner does (with pos)",
    "tear" tear: "the log gets shorter under a live owner, and new requests come (with pos)",
}

small! {
    pub enum St { New, Created, Started, Done }
    /// One request in a ledger. mark: 0 none, 1 running, 2 on trial; trial: who may stand trial beside it: a group (0), who has
    /// a child of its own (1), no other suspect of this worker (2), nothing else at all (3).
    pub struct L { pub st: St, pub att: u8, pub lost: u8, pub mark: u8, pub trial: u8 }
    /// Committed offset metadata of the shard: head + ledgers. An offset is the first entry of its cell that is not Done.
    pub struct Rec { pub set: bool, pub id: u8, pub seq: u8, pub clean: bool, pub recov: bool, pub l: [L; R] }
    pub enum K { Created, Running, Retry, Died, Parted, Ended, Lost, Cancelled }
    /// `lost` is the death count written beside the event (ghost: the invariant on deaths reads it).
    pub struct Ev { pub r: u8, pub k: K, pub a: u8, pub lost: u8 }
    pub enum Res { Open, Committed, Aborted }
    /// A record in the status partition behind the LSO; `id` is the transactional id that wrote it.
    pub struct Entry { pub id: u8, pub ev: Ev, pub res: Res }
    /// Offsets sent in a transaction: of the cells of the mask, less those that a later plain commit has overtaken.
    pub struct Pend { pub id: u8, pub cells: u8, pub rec: Rec }
    pub enum Ts { Empty, Ongoing, Commit, Abort }
    /// Transaction coordinator: state of one id and the partitions that still need a marker.
    pub struct Tx { pub st: Ts, pub status: bool, pub offs: bool, pub sched: bool }
    pub enum Owner { Nobody, Worker(u8), Dead }
    pub enum Up { Down, Up, Frozen }
    pub enum Pc { Loop, C1, C2, C2w, C3, C4, C4t, C5, Again, T1, T2, T3, T4, Ab, VEnd, Rec }
    pub enum Ph { No, Wait, Granted, Exec, FinOk, FinRetry, FinLong, FinX, FinDied, FinParted }
    /// An owner's memory of one request. chg: the claim charges it; have: its record was read; fact: what tasks.status told
    /// and no ledger says yet (0 nothing, ENDED, else 1 + attempt); over: its trial is (owed), over_ok: (committed);
    /// ward: it runs in the child of a group (1), in a quarantine child of its own (2); keep: a mark that was not cleared (mutation).
    pub struct Mem { pub st: St, pub att: u8, pub lost: u8, pub chg: bool, pub ph: Ph, pub prog: bool, pub sch: bool,
        pub trial: u8, pub over: bool, pub over_ok: bool, pub ward: u8, pub keep: bool, pub have: bool, pub fact: u8 }
    /// What a batch does to a request; `Both`: CREATED and RUNNING 1 in one transaction.
    pub enum Op { No, Create, Both, Start, Progress, Survive, Retry, Long, Died, Parted, Finish, Cancel, Lost }
    /// A record of tasks.schedule: absent, or the request with attempt, lost and its running mark.
    pub struct Sv { pub on: bool, pub att: u8, pub lost: u8, pub run: bool }
    pub struct Sent { pub id: u8, pub r: u8, pub v: Sv, pub res: Res }
    /// own: 0 no, 1 claiming, 2 claimed. rv: revoking; re: claiming again; amb: a batch is in doubt; seq: of the recorded head;
    /// oid: id of the batch in doubt; fid: id to fence. rcl: tasks.status is to be read; hw: its records up to the end that is
    /// to be read and are not stable yet; lim: requests beyond the log end seen by the claim; hrec: the committed head says recovering.
    pub struct Wk {
        pub up: Up, pub joined: bool, pub own: u8, pub pc: Pc, pub id: u8, pub ok: bool, pub meta: bool,
        pub rv: bool, pub re: bool, pub amb: bool, pub seq: u8, pub oid: u8, pub fid: u8,
        pub m: [Mem; R], pub plan: [Op; R], pub ex: [u8; R],
        pub read: bool, pub sch: [Sv; R], pub rcl: bool, pub hw: u8, pub lim: u8, pub hrec: bool,
    }
    /// Ghosts of one request. `h*`: what a read_committed reader has seen; the others: what is decided at the coordinator.
    /// must, may: a death is to be, can be charged; died: a process died under it; blur: its deaths cannot be known any more;
    /// parted: the child of its group died; out: it outlived its trial; forgiven: and its deaths were; excused: the log lost its record.
    pub struct Gh { pub hk: u8, pub ha: u8, pub att: u8, pub granted: u8, pub started: u8, pub term: bool,
        pub lost: u8, pub must: bool, pub may: bool, pub run: bool, pub ctl: bool, pub died: bool, pub blur: bool, pub parted: bool, pub out: bool, pub forgiven: bool, pub excused: bool }
}

pub const NONE: u8 = 99; // no id; as the recorded owner: nobody
pub const ENDED: u8 = 255;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct State {
    pub memb: [bool; W],
    pub owner: Owner,
    pub target: u8, // NONE, or the worker that the shard moves to as soon as the owner has revoked it
    pub com: Rec,
    pub pend: Vec<Pend>, // in the order of their append
    pub tx: Vec<Tx>,
    pub log: Vec<Entry>, // status partition from the LSO on
    pub slog: Vec<Sent>, // schedule partition from its LSO on
    pub sval: [Sv; R],   // schedule partition below the LSO, compacted
    pub net: Vec<u8>,    // EndTxn(commit) requests still in the network, by id
    pub late: Option<Rec>, // a copy of a plain claim commit still in the network; a new generation makes it void
    pub w: [Wk; W],
    pub f: Faults,
    pub g: [Gh; R],
    pub gone: [bool; R],  // below the log start
    pub cut: [bool; R],   // beyond the log end: no record stands there
    pub blocked: bool,    // nothing is appended before an owner has sought
    pub old: [u8; R],     // what tasks.status says about a former record at this offset, as in Mem.fact
    pub bad: Option<&'static str>,
}

pub const L0: L = L { st: St::New, att: 0, lost: 0, mark: 0, trial: 0 };
pub const M0: Mem = Mem { st: St::New, att: 0, lost: 0, chg: false, ph: Ph::No, prog: false, sch: false, trial: 0, over: false,
    over_ok: false, ward: 0, keep: false, have: false, fact: 0 };
pub const DONE: Mem = Mem { st: St::Done, have: true, ..M0 };
pub const S0: Sv = Sv { on: false, att: 0, lost: 0, run: false };
pub const W0: Wk = Wk { up: Up::Down, joined: false, own: 0, pc: Pc::Loop, id: NONE, ok: false, meta: false, rv: false, re: false,
    amb: false, seq: 0, oid: NONE, fid: NONE, m: [M0; R], plan: [Op::No; R], ex: [0; R], read: false, sch: [S0; R],
    rcl: false, hw: 0, lim: 0, hrec: false };
pub const G0: Gh = Gh { hk: 0, ha: 0, att: 0, granted: 0, started: 0, term: false, lost: 0, must: false, may: false, run: false, ctl: false,
    died: false, blur: false, parted: false, out: false, forgiven: false, excused: false };
pub const T0: Tx = Tx { st: Ts::Empty, status: false, offs: false, sched: false };
pub const R0: Rec = Rec { set: false, id: NONE, seq: 0, clean: true, recov: false, l: [L0; R] };

impl State {
    /// `one`: the second request counts as finished long ago, so that one request meets more faults.
    pub fn init(f: Faults, one: bool) -> State {
        let mut s = State { memb: [false; W], owner: Owner::Nobody, target: NONE, com: R0, pend: vec![], tx: vec![], log: vec![], slog: vec![],
            sval: [S0; R], net: vec![], late: None, w: [W0; W], f, g: [G0; R], gone: [false; R], cut: [false; R], blocked: false, old: [0; R], bad: None };
        if one { s.g[1] = Gh { hk: 3, term: true, ..G0 }; s.com.l[1].st = St::Done }
        s
    }

    /// Renames ids in order of appearance, drops dead ones, shifts sequences, sorts the two workers: same future, one form.
    pub fn canon(&self) -> State {
        let a = self.rename();
        let mut b = self.clone();
        b.w.swap(0, 1);
        b.memb.swap(0, 1);
        let sw = |x: u8| if x < W as u8 { 1 - x } else { x };
        if let Owner::Worker(x) = b.owner { b.owner = Owner::Worker(sw(x)) }
        b.target = sw(b.target);
        let b = b.rename();
        if a <= b { a } else { b }
    }

    fn rename(&self) -> State {
        let mut s = self.clone();
        let mut map = [NONE; 100];
        let mut n = 0u8;
        let mut tx = vec![];
        let mut name = |x: u8| -> u8 {
            if x == NONE { return NONE }
            if map[x as usize] == NONE { map[x as usize] = n; n += 1; tx.push(self.tx[x as usize]); }
            map[x as usize]
        };
        for w in s.w.iter_mut() {
            if w.up == Up::Down { *w = W0 }
            w.id = name(w.id); w.oid = name(w.oid); w.fid = name(w.fid);
        }
        s.com.id = name(s.com.id);
        for p in s.pend.iter_mut() { p.id = name(p.id); p.rec.id = name(p.rec.id) }
        for e in s.log.iter_mut() { e.id = if e.res == Res::Open { name(e.id) } else { NONE } }
        for e in s.slog.iter_mut() { e.id = if e.res == Res::Open { name(e.id) } else { NONE } }
        for x in s.net.iter_mut() { *x = name(*x) }
        if let Some(r) = s.late.as_mut() { r.id = name(r.id) }
        for (i, t) in self.tx.iter().enumerate() { if t.st != Ts::Empty { name(i as u8); } }
        s.tx = tx;
        let mut lo = s.com.seq;
        for w in s.w.iter() { if w.up != Up::Down && w.own > 0 { lo = lo.min(w.seq) } }
        for p in s.pend.iter() { lo = lo.min(p.rec.seq) }
        if let Some(r) = s.late { lo = lo.min(r.seq) }
        s.com.seq -= lo;
        for w in s.w.iter_mut() { w.seq = if w.up != Up::Down && w.own > 0 { w.seq - lo } else { 0 } }
        for p in s.pend.iter_mut() { p.rec.seq -= lo }
        if let Some(r) = s.late.as_mut() { r.seq -= lo }
        s
    }

    /// Every request has a terminal event that a read_committed reader has seen, or its record is not there.
    pub fn settled(&self) -> bool { (0..R).all(|r| self.g[r].hk == 3 || self.g[r].excused || self.cut[r]) }
}
