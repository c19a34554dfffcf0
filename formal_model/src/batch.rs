//! A batch: what is due, its events, its ledger texts, its transaction (core/batch.py, core/protocol.py `commit`).
use crate::broker::*;
use crate::promises::*;
use crate::rules::Cfg;
use crate::state::*;

/// Its next run is (or the present one began as) a trial.
pub fn suspect(m: &Mem, cfg: &Cfg) -> bool { cfg.iso && m.lost >= cfg.suspect() }
/// That trial is one that it stands alone.
fn alone(m: &Mem, cfg: &Cfg) -> bool { suspect(m, cfg) && m.trial == 3 && !m.over_ok }
/// It runs in a child of its own.
pub fn isolated(m: &Mem, cfg: &Cfg) -> bool { cfg.iso && (cfg.proc || m.ward > 0) }
/// Its deaths when its own child has died: the one of who had outlived its trial in quarantine is one more than a suspect's.
fn died_alone(m: &Mem, cfg: &Cfg) -> u8 { if m.ward > 0 { m.lost.max(cfg.suspect()) + 1 } else { m.lost + cfg.child_counts as u8 } }
/// Both run in the child of one group.
pub fn together(a: &Mem, b: &Mem) -> bool { a.ward == 1 && b.ward == 1 && a.ph == Ph::Exec && b.ph == Ph::Exec }
/// Until this stands in the ledgers, the head says so.
pub fn recovering(w: &Wk) -> bool { w.rcl || w.m.iter().any(|m| m.fact != 0) }

pub fn written(m: &Mem, cfg: &Cfg, clean: bool) -> L {
    if m.st == St::Done || m.sch { return L { st: St::Done, ..L0 } }
    let lost = m.lost + (m.chg && !(cfg.charge_late && !cfg.mark)) as u8;
    let runs = !matches!(m.ph, Ph::No | Ph::Wait);
    let trial = suspect(m, cfg) && !m.over_ok;
    let mark = if clean || !cfg.mark { 0 } else if runs { if trial { 2 } else { 1 } } else { m.keep as u8 };
    L { st: m.st, att: m.att, lost, mark, trial: m.trial }
}

pub fn apply(m: &mut [Mem; R], plan: &[Op; R], cfg: &Cfg) {
    for r in 0..R {
        let x = &mut m[r];
        match plan[r] {
            Op::No => {}
            Op::Create => x.st = St::Created,
            Op::Both => { x.st = St::Started; x.att = 1; x.ph = Ph::Granted }
            Op::Start => { x.st = St::Started; x.att += 1; x.lost += x.chg as u8; x.chg = false; x.ph = Ph::Granted; x.prog = false;
                x.ward = if !suspect(x, cfg) || !(cfg.child || cfg.proc) { 0 } else if x.trial == 0 && cfg.child { 1 } else { 2 };
                x.over = false; x.over_ok = false; x.keep = false }
            Op::Progress => x.prog = false,
            Op::Survive => { x.over = false; x.over_ok = true; if cfg.forgive { x.lost = 0; x.trial = 0 } }
            Op::Retry => { x.ph = Ph::Wait; x.over_ok = false; x.ward = 0 }
            Op::Died => { x.lost = died_alone(x, cfg); x.ph = Ph::Wait; x.keep = !cfg.child_clears; x.over_ok = false; x.ward = 0 }
            Op::Parted => { x.lost = x.lost.max(cfg.suspect()); x.trial = x.trial.max(1); x.ph = Ph::Wait; x.over_ok = false; x.ward = 0 }
            Op::Long => { x.ph = Ph::Wait; x.sch = true }
            Op::Finish | Op::Cancel | Op::Lost => *x = DONE,
        }
    }
}

fn events(r: usize, op: Op, m: &Mem, cfg: &Cfg) -> Vec<Ev> {
    let lost = match m.ph { Ph::FinDied => died_alone(m, cfg), Ph::FinParted => m.lost.max(cfg.suspect()), _ => m.lost };
    let one = |k, a| Ev { r: r as u8, k, a, lost: lost + m.chg as u8 };
    let ev = |k, a| vec![one(k, a)];
    match op {
        Op::No | Op::Survive => vec![],
        Op::Both => vec![one(K::Created, 0), one(K::Running, 1)],
        Op::Create => ev(K::Created, 0),
        Op::Start => ev(K::Running, m.att + 1),
        Op::Progress => ev(K::Running, m.att),
        Op::Retry | Op::Long => ev(K::Retry, m.att),
        Op::Died => ev(K::Died, m.att),
        Op::Parted => ev(K::Parted, m.att),
        Op::Finish => ev(K::Ended, m.att),
        Op::Cancel => ev(K::Cancelled, m.att),
        Op::Lost => ev(K::Lost, m.att),
    }
}

/// The schedule record that goes with an operation, if any.
fn sched_record(op: Op, m: &Mem, cfg: &Cfg) -> Option<Sv> {
    match op {
        Op::Long => Some(Sv { on: true, att: m.att, lost: m.lost + m.chg as u8, run: false }),
        Op::Start if m.sch && cfg.sched_start => Some(Sv { on: true, att: m.att + 1, lost: m.lost + m.chg as u8, run: true }),
        Op::Retry if m.sch && cfg.sched_start => Some(Sv { on: true, att: m.att, lost: m.lost, run: false }),
        Op::Finish | Op::Cancel | Op::Lost if m.sch => Some(S0),
        _ => None,
    }
}

/// What the end of an execution leads to; also inside a revoke.
fn owed(m: &Mem, cfg: &Cfg) -> Op {
    match m.ph {
        Ph::FinOk => Op::Finish, Ph::FinRetry => Op::Retry, Ph::FinLong => Op::Long, Ph::FinX => Op::Cancel,
        Ph::FinDied => if died_alone(m, cfg) >= cfg.lost_max() { Op::Lost } else { Op::Died },
        Ph::FinParted => Op::Parted,
        _ => Op::No,
    }
}

fn options(m: &Mem, ctl: bool, waits: bool, cfg: &Cfg) -> Vec<Op> {
    let mut v = vec![Op::No];
    if !m.have { return v }
    match (m.st, m.ph) {
        (St::New, _) if waits => {}
        (St::New, _) => { v.push(Op::Create); v.push(Op::Both) }
        (St::Created, _) => { v.push(Op::Start); if ctl { v.push(Op::Cancel) } }
        (St::Started, Ph::Wait) => {
            v.push(if m.lost + m.chg as u8 >= cfg.lost_max() { Op::Lost } else { Op::Start });
            if ctl { v.push(Op::Cancel) }
        }
        (St::Started, Ph::Exec) => { if m.prog { v.push(Op::Progress) } if m.over { v.push(Op::Survive) } }
        (St::Started, _) if owed(m, cfg) != Op::No => v.push(owed(m, cfg)),
        _ => {}
    }
    v
}

pub fn begin(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    // Until every request that the ledger or tasks.status knows has been read again, nothing new is admitted.
    let waits = w.m.iter().any(|m| !m.have && (matches!(m.st, St::Created | St::Started) || (m.fact != 0 && m.fact != ENDED)));
    let o: Vec<Vec<Op>> = (0..R).map(|r| options(&w.m[r], s.g[r].ctl, waits, cfg)).collect();
    let trials = w.m.iter().filter(|m| suspect(m, cfg) && !m.over_ok && !matches!(m.ph, Ph::No | Ph::Wait)).count();
    for a in &o[0] { for b in &o[1] {
        let plan = [*a, *b];
        if plan == [Op::No; R] && !(w.hrec && !recovering(w)) { continue }
        let more = (0..R).filter(|r| plan[*r] == Op::Start && suspect(&w.m[*r], cfg)).count();
        let on_trial = |r: usize| suspect(&w.m[r], cfg) && ((!w.m[r].over_ok && !matches!(w.m[r].ph, Ph::No | Ph::Wait)) || plan[r] == Op::Start);
        let narrow = (0..R).any(|r| on_trial(r) && w.m[r].trial > 1);
        if cfg.one_trial && narrow && more > 0 && trials + more > 1 { continue }
        let starts = (0..R).filter(|r| matches!(plan[*r], Op::Start | Op::Both)).count();
        let tried = w.m.iter().any(|m| alone(m, cfg) && !matches!(m.ph, Ph::No | Ph::Wait));
        let goes = (0..R).any(|r| plan[r] == Op::Start && alone(&Mem { over_ok: false, ..w.m[r] }, cfg));
        let busy = w.m.iter().any(|m| matches!(m.ph, Ph::Granted | Ph::Exec));
        if cfg.held && starts > 0 && (tried || (goes && (busy || starts > 1))) { continue }
        push(out, "begins a batch", i, 0, Class::Step, s, |n| { let v = &mut n.w[i]; v.plan = plan; v.meta = s.memb[i]; v.pc = Pc::T1 })
    } }
}

pub fn revoke(n: &mut State, i: usize, cfg: &Cfg) {
    let memb = n.memb[i];
    let w = &mut n.w[i];
    w.rv = true; w.meta = memb; w.pc = Pc::T1;
    if cfg.end_first && !cfg.threads { w.ex = [0; R] }
    for r in 0..R { w.plan[r] = owed(&w.m[r], cfg) }
}

/// The cells that this batch writes.
fn cells(w: &Wk, rec: &Rec, cfg: &Cfg) -> u8 {
    if !cfg.bands { return 1 }
    let runs = w.rv && cfg.close_cells && !matches!(w.m[1].ph, Ph::No | Ph::Wait);
    let all = w.hrec && !rec.recov && cfg.whole_head;
    let other = all || runs || w.plan[1] != Op::No;
    let lead = cfg.lead || w.rv || w.plan[0] != Op::No || !other;
    lead as u8 | (other as u8) << 1
}

/// Head and ledgers as this batch leaves them.
fn texts(w: &Wk, cfg: &Cfg) -> Rec {
    let mut m = w.m;
    apply(&mut m, &w.plan, cfg);
    let recov = recovering(w) && cfg.says_recovering && (!w.rv || cfg.close_recovering);
    let l = [written(&m[0], cfg, w.rv), written(&m[1], cfg, w.rv)];
    // A clean hand-over of a shard that recovers names nobody: there is nothing to fence, but tasks.status is to be read.
    Rec { set: true, id: if w.rv && recov { NONE } else { w.id }, seq: w.seq + 1, clean: w.rv && !recov, recov, l }
}

pub fn transaction(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    let t = s.tx[w.id as usize].st;
    let evs: Vec<Ev> = (0..R).flat_map(|r| events(r, w.plan[r], &w.m[r], cfg)).collect();
    let fenced = |out: &mut Out| push(out, "gets _FENCED", i, 0, Class::Step, s, |n| n.w[i].pc = Pc::Rec);
    match w.pc {
        Pc::T1 => {
            if !w.ok { return fenced(out) }
            if matches!(t, Ts::Commit | Ts::Abort) { return }
            push(out, "produces and flushes", i, evs.len(), Class::Step, s, |n| {
                let id = w.id;
                for e in &evs { n.log.push(Entry { id, ev: *e, res: Res::Open }) }
                if !evs.is_empty() { n.tx[id as usize].st = Ts::Ongoing; n.tx[id as usize].status = true }
                if cfg.sched { for r in 0..R {
                    let m = &w.m[r];
                    let handed = w.rv && cfg.sched_clean && m.sch && w.plan[r] == Op::No && m.ph != Ph::Wait;
                    let v = if handed { Some(Sv { on: true, att: m.att, lost: m.lost, run: false }) } else { sched_record(w.plan[r], m, cfg) };
                    if let Some(v) = v {
                        n.slog.push(Sent { id, r: r as u8, v, res: Res::Open });
                        n.tx[id as usize].st = Ts::Ongoing; n.tx[id as usize].sched = true }
                } }
                n.w[i].pc = Pc::T2 })
        }
        Pc::T2 => {
            let mere_progress = !w.rv && w.plan.contains(&Op::Progress) && w.plan.iter().all(|o| matches!(o, Op::No | Op::Progress));
            if !w.ok { return fenced(out) }
            if !cfg.fence_rule && mere_progress { return push(out, "sends no offsets", i, 0, Class::Step, s, |n| n.w[i].pc = Pc::T3) }
            if !(if cfg.late_meta { s.memb[i] } else { w.meta }) { return push(out, "TxnOffsetCommit refused: generation", i, 0, Class::Step, s, |n| n.w[i].pc = Pc::Ab) }
            push(out, "sends offsets", i, w.rv as usize, Class::Step, s, |n| {
                let rec = texts(w, cfg);
                let all = cells(w, &rec, cfg);
                let now = if cfg.one_txn || all & 1 == 0 { all } else { 1 };
                n.pend.push(Pend { id: w.id, cells: now, rec });
                let t = &mut n.tx[w.id as usize];
                t.st = Ts::Ongoing; t.offs = true;
                n.w[i].pc = Pc::T3 })
        }
        Pc::T3 => {
            if !w.ok { return fenced(out) }
            if t != Ts::Ongoing {
                // a late copy of an earlier EndTxn has already ended this transaction: the broker says yes again
                return push(out, "EndTxn: already ended", i, 0, Class::Step, s, |n| n.w[i].pc = Pc::T4)
            }
            push(out, "EndTxn(commit) applied", i, 0, Class::Step, s, |n| { decide(n, w.id, cfg); n.w[i].pc = Pc::T4 });
            if s.f.amb > 0 {
                push(out, "EndTxn(commit) applied, ANSWER LOST", i, 0, Class::Fault, s, |n| { n.f.amb -= 1; decide(n, w.id, cfg); n.w[i].amb = true; n.w[i].pc = Pc::Rec });
                push(out, "EndTxn(commit) DELAYED, times out", i, 0, Class::Fault, s, |n| { n.f.amb -= 1; n.net.push(w.id); n.w[i].amb = true; n.w[i].pc = Pc::Rec });
            }
            if s.f.dup > 0 {
                push(out, "EndTxn(commit) slow, retried: applied, a COPY stays in the network", i, 0, Class::Fault, s, |n| {
                    n.f.dup -= 1; decide(n, w.id, cfg); n.net.push(w.id);
                    n.w[i].pc = if cfg.recycle_slow { n.w[i].amb = true; Pc::Rec } else { Pc::T4 } });
            }
        }
        Pc::T4 => push(out, "commit answered", i, 0, Class::Step, s, |n| {
            let rec = texts(w, cfg);
            if !cfg.one_txn && cells(w, &rec, cfg) == 3 && s.memb[i] { commit_plain(n, &rec, 2, cfg) }
            settle(n, i, cfg) }),
        Pc::Ab => {
            if !w.ok { return fenced(out) }
            push(out, "aborts", i, 0, Class::Step, s, |n| {
                if t == Ts::Ongoing { close_tx(n, w.id, Ts::Abort) }
                let v = &mut n.w[i];
                v.plan = [Op::No; R];
                v.pc = if v.rv { Pc::VEnd } else { Pc::Loop } })
        }
        _ => unreachable!(),
    }
}

/// The batch has landed: what it paid is no longer owed (core/engine.py `settle`).
pub fn landed(w: &mut Wk, cfg: &Cfg) {
    let plan = w.plan;
    apply(&mut w.m, &plan, cfg);
    w.hrec = recovering(w) && cfg.says_recovering;
    for r in 0..R { if w.ex[r] != 0 && plan[r] == Op::Start { w.m[r].ph = Ph::Exec } }
    w.plan = [Op::No; R];
}

fn settle(n: &mut State, i: usize, cfg: &Cfg) {
    let w = &mut n.w[i];
    landed(w, cfg);
    w.seq += 1; w.meta = false;
    w.pc = if w.rv { Pc::VEnd } else { Pc::Loop };
}
