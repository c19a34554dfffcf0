//! The claim, step by step, and what an owner knows after it (core/protocol.py `claim`, core/ownership.py, core/shard.py `adopt`).
use crate::batch::*;
use crate::broker::*;
use crate::promises::*;
use crate::rules::Cfg;
use crate::state::*;
use crate::worker::{forget, fresh_producer};

pub fn claim(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    let gives_up = |out: &mut Out| if cfg.deadline { push(out, "claim: deadline, gives up", i, 0, Class::Step, s, |n| claim_fails(n, i, cfg)) };
    let fence_pc = |c: Pc| if cfg.fence && !cfg.fence_after { Pc::C2 } else { c };
    match w.pc {
        Pc::C1 => push(out, "claim 1: lists offsets, unstable", i, 0, Class::Step, s, |n| {
            let v = &mut n.w[i];
            let foreign = s.com.set && s.com.id != w.id && (cfg.fence_former || s.com.id != w.oid);
            v.fid = if foreign && (!s.com.clean || cfg.fence_clean) { s.com.id } else { NONE };
            if cfg.sched && cfg.sched_early { v.sch = s.sval; v.read = true }
            v.pc = if v.fid != NONE { fence_pc(Pc::C3) } else { Pc::C3 } }),
        Pc::C2 => match s.tx[w.fid as usize].st {
            Ts::Ongoing => push(out, "claim 2: init_transactions aborts the recorded id", i, w.fid as usize, Class::Step, s, |n| {
                bump(n, w.fid); close_tx(n, w.fid, Ts::Abort); n.w[i].pc = Pc::C2w }),
            Ts::Empty => push(out, "claim 2: init_transactions of the recorded id", i, w.fid as usize, Class::Step, s, |n| {
                bump(n, w.fid); n.w[i].fid = NONE; n.w[i].pc = if cfg.fence_after { Pc::C4 } else { Pc::C3 } }),
            _ if cfg.fence_decided => push(out, "claim 2: the recorded id is decided", i, w.fid as usize, Class::Step, s, |n| {
                n.w[i].fid = NONE; n.w[i].pc = if cfg.fence_after { Pc::C4 } else { Pc::C3 } }),
            _ => gives_up(out),
        },
        Pc::C2w => if s.tx[w.fid as usize].st != Ts::Empty && !cfg.fence_decided { gives_up(out) } else { push(out, "claim 2: fence complete", i, 0, Class::Step, s, |n| {
            n.w[i].fid = NONE; n.w[i].pc = if cfg.fence_after { Pc::C4 } else { Pc::C3 } }) },
        Pc::C3 => if cfg.stable && !s.pend.is_empty() { gives_up(out) } else { push(out, "claim 3: committed(), decodes", i, 0, Class::Step, s, |n| {
            let fence_now = cfg.fence && cfg.fence_after && w.fid != NONE;
            decode(n, i, cfg);
            n.w[i].pc = if fence_now { Pc::C2 } else { n.w[i].fid = NONE; Pc::C4 };
            if n.w[i].re && !cfg.reclaim { after_claim(n, i, cfg) } }) },
        Pc::C4 => {
            if !cfg.claim_commit { return push(out, "claim 4: skipped", i, 0, Class::Step, s, |n| { if !w.re { claimed_anew(n, i, cfg) } n.w[i].pc = Pc::C5 }) }
            if cfg.txn_claim {
                if !w.ok || !s.memb[i] { return push(out, "claim 4: transaction refused", i, 0, Class::Step, s, |n| claim_fails(n, i, cfg)) }
                if s.tx[w.id as usize].st != Ts::Empty { return }
                return push(out, "claim 4: transaction sends offsets", i, 0, Class::Step, s, |n| {
                    let rec = claim_record(w, cfg);
                    n.pend.push(Pend { id: w.id, cells: cfg.all(), rec });
                    n.tx[w.id as usize].st = Ts::Ongoing; n.tx[w.id as usize].offs = true; n.w[i].pc = Pc::C4t })
            }
            if !s.memb[i] { return push(out, "claim 4: plain commit refused: generation", i, 0, Class::Step, s, |n| claim_fails(n, i, cfg)) }
            let lands = |n: &mut State| {
                let rec = claim_record(w, cfg);
                let cells = if cfg.claim_cells { cfg.all() } else { 1 };
                if !w.re { claimed_anew(n, i, cfg) }
                passes(n, &rec, cells, cfg);
                commit_plain(n, &rec, cells, cfg);
                rec
            };
            push(out, "claim 4: plain commit", i, 0, Class::Step, s, |n| { lands(n); claimed(n, i, cfg) });
            if s.f.dupc > 0 { push(out, "claim 4: plain commit slow, sent again, a COPY stays in the network", i, 0, Class::Fault, s, |n| {
                n.f.dupc -= 1;
                n.late = Some(lands(n));
                if cfg.rejoin_slow { forget(n, i, cfg); n.w[i].joined = false; n.memb[i] = false; let to = n.memb[1 - i].then_some(1 - i); next_owner(n, to) }
                else { claimed(n, i, cfg) } }) }
        }
        Pc::C4t => {
            if !w.ok { return push(out, "claim 4: transaction fenced", i, 0, Class::Step, s, |n| claim_fails(n, i, cfg)) }
            push(out, "claim 4: transaction commits", i, 0, Class::Step, s, |n| { if !w.re { claimed_anew(n, i, cfg) } decide(n, w.id, cfg); claimed(n, i, cfg) })
        }
        Pc::C5 => if cfg.sched && !w.read && !w.re && cfg.sched_hw && !s.slog.is_empty() { if !s.memb[i] { gives_up(out) } } else {
            push(out, "claim 5, 6: reads schedule, starts", i, 0, Class::Step, s, |n| {
                if cfg.sched { let v = if w.read { w.sch } else { s.sval }; take_schedule(&mut n.w[i], &v, cfg) }
                after_claim(n, i, cfg) }) },
        _ => unreachable!(),
    }
}

/// What step 4 writes: this worker's memory, the charges in it, its id, the next sequence.
fn claim_record(w: &Wk, cfg: &Cfg) -> Rec {
    let l = |r: usize| {
        let mut l = written(&w.m[r], cfg, false);
        if !w.re && !cfg.mark { l.lost = w.m[r].lost }
        l
    };
    let recov = recovering(w) && cfg.says_recovering;
    Rec { set: true, id: w.id, seq: w.seq + 1, clean: false, recov, l: [l(0), l(1)] }
}

fn claimed(n: &mut State, i: usize, cfg: &Cfg) {
    if n.com.seq > 30 { bad(n, "livelock: a process that lost the shard fences its owner again and again") }
    n.blocked = false;
    let v = &mut n.w[i];
    v.seq += 1;
    v.hrec = recovering(v) && cfg.says_recovering;
    if cfg.mark && !v.re { for m in v.m.iter_mut() { m.lost += m.chg as u8; m.chg = false } }
    v.pc = Pc::C5;
    if !cfg.sched { after_claim(n, i, cfg) }
}

fn after_claim(n: &mut State, i: usize, cfg: &Cfg) {
    let ahead = if cfg.recall_end { n.log.len() as u8 } else { 0 };
    let v = &mut n.w[i];
    if !v.re && v.rcl { v.hw = ahead }
    v.own = 2; v.re = false; v.amb = false; v.oid = NONE; v.fid = NONE; v.read = false; v.sch = [S0; R]; v.pc = Pc::Loop;
}

fn claim_fails(n: &mut State, i: usize, cfg: &Cfg) {
    if n.w[i].re && cfg.same_id { n.w[i].pc = Pc::Again; return }
    if !n.w[i].ok && !cfg.same_id { fresh_producer(n, i, cfg); }
    if n.w[i].re { n.w[i].pc = Pc::Rec } else { forget(n, i, cfg) }
}

fn take_schedule(v: &mut Wk, sval: &[Sv; R], cfg: &Cfg) {
    for r in 0..R { if sval[r].on && !v.re {
        let x = sval[r];
        v.m[r] = Mem { st: St::Started, att: x.att, lost: x.lost, chg: cfg.sched_start && x.run, ph: Ph::Wait, sch: true, have: true, ..M0 };
    } }
}

fn decode(n: &mut State, i: usize, cfg: &Cfg) {
    let com = n.com;
    let memb = n.memb[i];
    if !n.w[i].re { adopt(n, i, cfg) }
    else if n.w[i].amb {
        let w = &mut n.w[i];
        if cfg.read_back && com.id == w.oid && com.seq == w.seq + 1 { landed(w, cfg) }
        let foreign = com.id != w.oid;
        w.plan = [Op::No; R]; w.amb = false;
        if foreign && memb && cfg.unique_ids && cfg.reclaim && cfg.own_filter && cfg.keep_batch_id && cfg.claim_commit && cfg.poll_first { bad(n, "model: foreign record while still a member") }
    }
    n.w[i].seq = com.seq;
}

/// Take the shard over from what is committed: ledgers, positions, who is charged (core/shard.py `adopt`, core/ledger.py `charge`).
fn adopt(n: &mut State, i: usize, cfg: &Cfg) {
    let com = n.com;
    let mut m = [Mem { have: !cfg.pos, ..M0 }; R];
    let mut rcl = com.set && com.recov;
    let mut lim = 0u8;
    for cell in cfg.cells() {
        let end = cell.iter().position(|r| n.cut[*r]).unwrap_or(cell.len());
        let position = cell.iter().position(|r| com.l[*r].st != St::Done).unwrap_or(cell.len());
        let believed = !cfg.pos || (com.set && (!cfg.bounds || cell[end..].iter().all(|r| com.l[*r].st == St::New)));
        if cfg.pos { for r in &cell[end..] { lim |= 1 << r } }
        if believed {
            for &r in *cell {
                let l = com.l[r];
                let started = l.st == St::Started;
                m[r] = Mem { st: l.st, att: l.att, lost: l.lost, ph: if started { Ph::Wait } else { Ph::No }, trial: l.trial,
                    chg: started && if cfg.mark { l.mark > 0 } else { !com.clean }, have: !cfg.pos || l.st == St::Done, ..M0 };
            }
        } else if com.set && position > end {
            for &r in &cell[..end] { m[r] = DONE } // our own position beyond the log end: on at the end
        } else if cell.iter().any(|r| !n.gone[*r] && !n.cut[*r]) { rcl = true }
        if cfg.pos { for &r in *cell { if n.gone[r] && m[r].st != St::Done && (cfg.skip || !believed) { m[r] = DONE } } }
    }
    if cfg.lives && com.set && com.id == n.w[i].id { for x in m.iter_mut() { x.chg = false } }
    if cfg.iso {
        let convicts = convicts(&com, cfg, |r| m[r].chg);
        for r in 0..R { if m[r].chg {
            m[r].chg = if convicts { com.l[r].mark == 2 || !cfg.trial_alone } else { m[r].lost < cfg.suspect() || !cfg.spare };
            if !convicts && com.l[r].mark == 2 { m[r].trial = if m[r].trial < 2 { 2 } else { 3 } }
        } }
    }
    let w = &mut n.w[i];
    w.m = m; w.lim = lim;
    w.rcl = rcl && cfg.recall;
}

/// Whether the death of this record's owner is that of who stood trial.
pub fn convicts(com: &Rec, cfg: &Cfg, charged: impl Fn(usize) -> bool) -> bool {
    (0..R).any(|r| charged(r) && com.l[r].mark == 2 && (com.l[r].trial == 3 || !cfg.alone))
}

/// tasks.status has been read to its end: what it says about requests that the log held when the shard was claimed.
pub fn recalled(n: &mut State, i: usize, cfg: &Cfg) {
    for r in 0..R {
        let (old, new) = (if cfg.by_id { 0 } else { n.old[r] }, told(&n.g[r]));
        let lim = n.w[i].lim;
        let m = &mut n.w[i].m[r];
        if lim >> r & 1 == 0 && m.st != St::Done { m.fact = old.max(new) }
    }
    n.w[i].rcl = false;
}

/// The record of r is read: what is known about it from tasks.status counts from now on (core/ledger.py `receive`).
pub fn received(m: &mut Mem) {
    m.have = true;
    let fact = m.fact;
    m.fact = 0;
    if fact == ENDED { *m = DONE }
    else if fact > 0 {
        let att = fact - 1;
        if m.st == St::New { m.st = St::Created }
        if att > m.att { m.st = St::Started; m.att = att; m.ph = Ph::Wait }
    }
}
