//! Every step of the broker, the network, the clients and the adversary.
use crate::promises::*;
use crate::rules::Cfg;
use crate::state::*;
use crate::worker::{fresh_producer, worker};

/// Step: done by the protocol or the broker sooner or later. Fault: taken from the budget, or done by a client at will.
/// Timeout: the coordinator ends the transaction of somebody who is gone. Wake: a frozen process goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class { Step, Fault, Timeout, Wake }
#[derive(Clone, Copy, Debug)]
pub struct Lab(pub &'static str, pub u8, pub u8);
pub type Out = Vec<(Lab, Class, State)>;

pub fn succ(s: &State, cfg: &Cfg, out: &mut Out) {
    out.clear();
    if s.bad.is_some() { return }
    broker(s, cfg, out);
    for i in 0..W { adversary(s, i, cfg, out); if s.w[i].up == Up::Up { worker(s, i, cfg, out) } }
    for r in 0..R {
        if s.f.cancel > 0 && !s.g[r].ctl && !s.g[r].term { push(out, "client: cancel", 0, r, Class::Fault, s, |n| { n.f.cancel -= 1; n.g[r].ctl = true }) }
    }
    if cfg.pos { logs(s, cfg, out) }
}

pub fn push(out: &mut Out, name: &'static str, i: usize, x: usize, c: Class, s: &State, f: impl FnOnce(&mut State)) {
    let mut n = s.clone();
    f(&mut n);
    out.push((Lab(name, i as u8, x as u8), c, n));
}

/// Whoever holds this id is void from now on.
pub fn bump(s: &mut State, id: u8) {
    for w in s.w.iter_mut() { if w.id == id { w.ok = false } }
    s.net.retain(|x| *x != id);
}

/// A new generation: group metadata captured before it is refused at TxnOffsetCommit.
pub fn generation(s: &mut State) { s.late = None; for w in s.w.iter_mut() { w.meta = false } }

pub fn next_owner(s: &mut State, to: Option<usize>) {
    s.target = NONE;
    s.owner = match to { Some(i) => Owner::Worker(i as u8), None => Owner::Nobody };
    generation(s);
}

/// Offsets and texts of these cells take effect; the head lies on the lead cell.
pub fn record(com: &mut Rec, rec: &Rec, cells: u8, cfg: &Cfg) {
    if !cfg.bands { *com = *rec; return }
    let l = com.l;
    if cells & 1 != 0 { *com = *rec; com.l[1] = l[1] }
    if cells & 2 != 0 { com.l[1] = rec.l[1] }
}

/// A plain commit: it wins over what is pending.
pub fn commit_plain(s: &mut State, rec: &Rec, cells: u8, cfg: &Cfg) {
    record(&mut s.com, rec, cells, cfg);
    for p in s.pend.iter_mut() { p.cells &= !cells }
}

fn broker(s: &State, cfg: &Cfg, out: &mut Out) {
    for id in 0..s.tx.len() {
        let t = s.tx[id];
        if matches!(t.st, Ts::Commit | Ts::Abort) {
            let res = if t.st == Ts::Commit { Res::Committed } else { Res::Aborted };
            if t.status { push(out, "broker: marker in tasks.status of id", id, 0, Class::Step, s, |n| {
                for e in n.log.iter_mut() { if e.id == id as u8 && e.res == Res::Open { e.res = res } }
                n.tx[id].status = false; close_tx(n, id as u8, t.st); read_history(n) }) }
            if t.offs { push(out, "broker: marker in __consumer_offsets of id", id, 0, Class::Step, s, |n| {
                let k = n.pend.iter().position(|p| p.id == id as u8).unwrap();
                let p = n.pend.remove(k);
                if t.st == Ts::Commit { record(&mut n.com, &p.rec, p.cells, cfg); for q in n.pend.iter_mut().take(k) { q.cells &= !p.cells } }
                n.tx[id].offs = false; close_tx(n, id as u8, t.st) }) }
            if t.sched { push(out, "broker: marker in tasks.schedule of id", id, 0, Class::Step, s, |n| {
                for e in n.slog.iter_mut() { if e.id == id as u8 && e.res == Res::Open { e.res = res } }
                n.tx[id].sched = false; close_tx(n, id as u8, t.st); read_history(n) }) }
        }
        if t.st == Ts::Ongoing {
            let live = s.w.iter().any(|w| w.up == Up::Up && w.id == id as u8 && w.ok);
            let kill = |n: &mut State| { bump(n, id as u8); close_tx(n, id as u8, Ts::Abort) };
            if !live { push(out, "broker: transaction timeout of id", id, 0, Class::Timeout, s, kill) }
            else if s.f.tmo > 0 { push(out, "broker: transaction timeout of id", id, 0, Class::Fault, s, |n| { n.f.tmo -= 1; kill(n) }) }
        }
    }
    for k in 0..s.net.len() {
        let id = s.net[k];
        push(out, "network: late EndTxn(commit) arrives, id", id as usize, 0, Class::Step, s, |n| {
            n.net.remove(k);
            if n.tx[id as usize].st == Ts::Ongoing { decide(n, id, cfg) } });
    }
    if s.late.is_some() { push(out, "network: late copy of a plain claim commit arrives", 0, 0, Class::Step, s, |n| {
        let rec = n.late.take().unwrap();
        commit_plain(n, &rec, cfg.all(), cfg) }) }
    if s.owner == Owner::Dead {
        for k in 0..W { if s.memb[k] { push(out, "broker: session of the dead owner ends", 0, 0, Class::Step, s, |n| next_owner(n, Some(k))) } }
        if !s.memb.contains(&true) { push(out, "broker: session of the dead owner ends", 0, 0, Class::Step, s, |n| next_owner(n, None)) }
    }
}

/// What happens to the request logs and to the group's offsets, and the clients that write again.
fn logs(s: &State, cfg: &Cfg, out: &mut Out) {
    let quiet = s.log.is_empty() && s.pend.is_empty();
    // Nobody owns the shard, and nobody who has owned it can come back with what it knew.
    let empty = !s.memb.contains(&true) && s.owner == Owner::Nobody && s.w.iter().all(|w| w.own == 0 && w.ex == [0; R]);
    for cell in cfg.cells() {
        for (k, &r) in cell.iter().enumerate() {
            let below = &cell[..k];
            if s.f.del > 0 && !s.gone[r] && !s.cut[r] && below.iter().all(|q| s.gone[*q]) {
                push(out, "broker: retention takes request", 0, r, Class::Fault, s, |n| { n.f.del -= 1; n.gone[r] = true; excuse(n, r) }) }
            let from = &cell[k..];
            if from.iter().any(|q| s.gone[*q] || s.cut[*q]) { continue }
            let cut = |n: &mut State, r: usize| { n.old[r] = told(&n.g[r]); n.cut[r] = true; excuse(n, r); n.g[r].blur = true };
            if s.f.trunc > 0 && empty && quiet { push(out, "broker: the log ends before request", 0, r, Class::Fault, s, |n| {
                n.f.trunc -= 1; n.blocked = true; for q in from { cut(n, *q) } for g in n.g.iter_mut() { g.blur = true } }) }
            if s.f.recreate > 0 && empty && quiet && k == 0 { push(out, "broker: the topic is made anew, from request", 0, r, Class::Fault, s, |n| {
                n.f.recreate -= 1; for q in from { cut(n, *q) } n.com = Rec { seq: n.com.seq, ..R0 }; for g in n.g.iter_mut() { g.blur = true } }) }
            if s.f.tear > 0 && quiet && from.iter().all(|q| s.g[*q].hk == 3) && s.w.iter().any(|w| w.up == Up::Up && w.own == 2) {
                push(out, "broker: the log ends, under its owner, before request", 0, r, Class::Fault, s, |n| { n.f.tear -= 1; for q in from { cut(n, *q) } }) }
        }
        for (k, &r) in cell.iter().enumerate() {
            if s.cut[r] && !s.blocked && cell[..k].iter().all(|q| !s.cut[*q]) { push(out, "client: submits another request", 0, r, Class::Fault, s, |n| {
                n.cut[r] = false; n.g[r] = G0 }) }
        }
    }
    // The sequence is kept, so that states stay equal under a shift of it; a new owner compares no id with it.
    let left = !s.memb.contains(&true) && s.owner == Owner::Nobody; // a zombie may still be there
    if s.f.forget > 0 && left && s.pend.is_empty() && s.com.set { push(out, "broker: the group's offsets expire", 0, 0, Class::Fault, s, |n| {
        n.f.forget -= 1; n.com = Rec { seq: n.com.seq, ..R0 }; for g in n.g.iter_mut() { g.blur = true } }) }
}

pub fn crash(n: &mut State, i: usize, cfg: &Cfg) {
    let ex = n.w[i].ex;
    died(n, ex, cfg);
    if n.owner == Owner::Worker(i as u8) { n.owner = Owner::Dead }
    else if n.target == i as u8 { n.target = NONE }
    n.memb[i] = false;
    n.w[i] = W0;
}

fn adversary(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    if w.up == Up::Down { push(out, "process starts", i, 0, Class::Step, s, |n| if fresh_producer(n, i, cfg) { n.w[i].up = Up::Up }) }
    if w.up != Up::Down && s.f.crash > 0 { push(out, "CRASH", i, 0, Class::Fault, s, |n| { n.f.crash -= 1; crash(n, i, cfg) }) }
    if w.up == Up::Up && s.f.freeze > 0 { push(out, "FREEZE", i, 0, Class::Fault, s, |n| { n.f.freeze -= 1; n.w[i].up = Up::Frozen }) }
    if w.up == Up::Frozen { push(out, "WAKE", i, 0, Class::Wake, s, |n| n.w[i].up = Up::Up) }
    if s.memb[i] && w.up != Up::Down && (w.up == Up::Frozen || s.f.expire > 0) {
        let c = if w.up == Up::Frozen { Class::Step } else { Class::Fault };
        push(out, "broker: session expires", i, 0, c, s, |n| {
            if w.up == Up::Up { n.f.expire -= 1 }
            n.memb[i] = false;
            if n.owner == Owner::Worker(i as u8) { let other = 1 - i; let to = n.memb[other].then_some(other); next_owner(n, to) } else { if n.target == i as u8 { n.target = NONE } generation(n) } }) }
    if s.f.moves > 0 && s.memb[i] && s.target == NONE && matches!(s.owner, Owner::Worker(o) if o != i as u8) {
        push(out, "group: rebalance moves the shard to", i, 0, Class::Fault, s, |n| { n.f.moves -= 1; n.target = i as u8; generation(n) }) }
    if s.f.fence > 0 && w.up == Up::Up && w.ok && matches!(s.tx[w.id as usize].st, Ts::Empty | Ts::Ongoing) {
        push(out, "another shard's claim fences the id of", i, 0, Class::Fault, s, |n| {
            n.f.fence -= 1; let id = w.id; bump(n, id);
            if n.tx[id as usize].st == Ts::Ongoing { close_tx(n, id, Ts::Abort) } }) }
}
