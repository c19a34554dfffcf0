//! A worker: its turn, the group's callbacks, its handlers, recovery (worker/loop.py, core/protocol.py).
use crate::batch::*;
use crate::broker::*;
use crate::claim::{claim, recalled, received};
use crate::promises::bad;
use crate::rules::Cfg;
use crate::state::*;

fn new_id(s: &mut State, cfg: &Cfg) -> u8 {
    if !cfg.unique_ids && !s.tx.is_empty() { return 0 }
    s.tx.push(T0);
    s.tx.len() as u8 - 1
}

/// With unique ids a new producer is one step; with a shared id it waits for the transaction it aborts.
pub fn fresh_producer(n: &mut State, i: usize, cfg: &Cfg) -> bool {
    let id = new_id(n, cfg);
    if !cfg.unique_ids {
        match n.tx[id as usize].st {
            Ts::Empty => bump(n, id),
            Ts::Ongoing => { bump(n, id); crate::promises::close_tx(n, id, Ts::Abort); if n.tx[id as usize].st != Ts::Empty { return false } }
            _ => return false,
        }
    }
    n.w[i].id = id; n.w[i].ok = true;
    true
}

pub fn forget(n: &mut State, i: usize, cfg: &Cfg) {
    let w = n.w[i];
    n.w[i] = Wk { up: w.up, joined: w.joined, id: w.id, ok: w.ok, seq: w.seq, ex: if cfg.threads { w.ex } else { [0; R] }, ..W0 };
}

fn lost(n: &mut State, i: usize, cfg: &Cfg) {
    if cfg.own_filter { forget(n, i, cfg) } else { n.w[i].pc = Pc::Loop }
    n.w[i].joined = false;
}

fn release(n: &mut State, i: usize) {
    if n.memb[i] && n.owner == Owner::Worker(i as u8) && n.target != NONE { n.owner = Owner::Worker(n.target); n.target = NONE; generation(n) }
}

pub fn worker(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    let mine = s.owner == Owner::Worker(i as u8);
    handlers(s, i, cfg, out);
    match w.pc {
        Pc::Loop => {
            if !w.joined {
                push(out, "joins the group", i, 0, Class::Step, s, |n| { n.w[i].joined = true; n.memb[i] = true; generation(n);
                    if n.owner == Owner::Nobody { n.owner = Owner::Worker(i as u8) } });
                return
            }
            if !s.memb[i] { push(out, "poll: on_lost", i, 0, Class::Step, s, |n| lost(n, i, cfg)) }
            else if mine && s.target != NONE {
                if w.own == 2 { push(out, "poll: on_revoke begins", i, 0, Class::Step, s, |n| revoke(n, i, cfg)) }
                else { push(out, "poll: on_revoke, nothing claimed", i, 0, Class::Step, s, |n| release(n, i)) }
            }
            else if mine && w.own == 0 { push(out, "poll: on_assign", i, 0, Class::Step, s, |n| { n.w[i].own = 1; n.w[i].seq = n.com.seq; n.w[i].pc = Pc::C1 }) }
            if w.own == 2 && w.rcl {
                if w.hw == 0 { push(out, "reads tasks.status to its end", i, 0, Class::Step, s, |n| recalled(n, i, cfg)) }
            } else if w.own == 2 {
                if cfg.pos { reads(s, i, cfg, out) }
                begin(s, i, cfg, out)
            }
        }
        Pc::C1 | Pc::C2 | Pc::C2w | Pc::C3 | Pc::C4 | Pc::C4t | Pc::C5 => claim(s, i, cfg, out),
        // A claim of a recovery has failed: the loop polls, then it is made again. What is revoked meanwhile is not committed.
        Pc::Again => if !s.memb[i] { push(out, "poll: on_lost", i, 0, Class::Step, s, |n| lost(n, i, cfg)) }
            else if mine && s.target != NONE { push(out, "poll: on_revoke of what is not claimed", i, 0, Class::Step, s, |n| n.w[i].pc = Pc::VEnd) }
            else { push(out, "poll: claims again", i, 0, Class::Step, s, |n| n.w[i].pc = Pc::C1) },
        Pc::T1 | Pc::T2 | Pc::T3 | Pc::T4 | Pc::Ab => transaction(s, i, cfg, out),
        Pc::VEnd if cfg.revoke_waits && s.memb[i] && s.tx[w.id as usize].st == Ts::Commit && s.tx[w.id as usize].offs => {}
        Pc::VEnd => push(out, "on_revoke: ends handlers, forgets the shard, returns", i, 0, Class::Step, s, |n| { forget(n, i, cfg); release(n, i) }),
        Pc::Rec => push(out, "recovery: poll, new producer", i, 0, Class::Step, s, |n| {
            if cfg.poll_first && !n.memb[i] { if fresh_producer(n, i, cfg) { lost(n, i, cfg) } }
            else if w.rv || (cfg.poll_first && mine && n.target != NONE) { if fresh_producer(n, i, cfg) { n.w[i].pc = Pc::VEnd } }
            else {
                let old = n.w[i].id;
                if fresh_producer(n, i, cfg) {
                    let v = &mut n.w[i];
                    if !v.re { v.oid = old }
                    if !cfg.keep_batch_id { v.oid = v.id }
                    v.re = true; v.amb = v.amb || v.plan.iter().any(|o| *o != Op::No);
                    v.pc = if cfg.reclaim { Pc::C1 } else { Pc::C3 };
                }
            } }),
    }
}

/// The next record of each cell, or word that it is gone.
fn reads(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    for cell in cfg.cells() {
        let Some(&r) = cell.iter().find(|r| !w.m[**r].have) else { continue };
        if s.gone[r] {
            if cfg.goes_on { push(out, "poll: the next record is gone, request", i, r, Class::Step, s, |n| n.w[i].m[r] = DONE) }
        } else if !s.cut[r] { push(out, "poll: reads request", i, r, Class::Step, s, |n| received(&mut n.w[i].m[r])) }
    }
}

fn handlers(s: &State, i: usize, cfg: &Cfg, out: &mut Out) {
    let w = &s.w[i];
    for r in 0..R {
        let m = w.m[r];
        let early = !cfg.write_ahead && w.plan[r] == Op::Start && matches!(w.pc, Pc::T1 | Pc::T2 | Pc::T3 | Pc::T4) && w.ex[r] == 0;
        if (m.ph == Ph::Granted && w.pc == Pc::Loop) || early { push(out, "handler starts, request", i, r, Class::Step, s, |n| {
            let a = if early { m.att + 1 } else { m.att };
            let g = &mut n.g[r];
            let (granted, twice, over) = (g.granted >> a & 1 == 1, g.started >> a & 1 == 1, g.term);
            g.started |= 1 << a;
            let holder = n.owner == Owner::Worker(i as u8) && n.memb[i];
            n.w[i].ex[r] = a;
            if !early { n.w[i].m[r].ph = Ph::Exec }
            if !granted { bad(n, "a handler starts before its RUNNING is committed") }
            else if twice { bad(n, "two executions share an attempt") }
            else if over && holder { bad(n, "a request with a committed terminal starts again") } }) }
        if m.ph == Ph::Exec {
            let fin = |n: &mut State, ph| { n.w[i].ex[r] = 0; let m = &mut n.w[i].m[r]; m.ph = ph; m.prog = false; m.over = false };
            push(out, "handler ends, request", i, r, Class::Step, s, |n| fin(n, Ph::FinOk));
            if s.f.retry > 0 { push(out, "handler fails, to be retried, request", i, r, Class::Fault, s, |n| { n.f.retry -= 1; fin(n, Ph::FinRetry) }) }
            if cfg.sched && s.f.long > 0 && !m.sch { push(out, "handler fails, retried much later, request", i, r, Class::Fault, s, |n| { n.f.long -= 1; fin(n, Ph::FinLong) }) }
            if s.f.prog > 0 && !m.prog { push(out, "handler reports progress, request", i, r, Class::Fault, s, |n| { n.f.prog -= 1; n.w[i].m[r].prog = true }) }
            if s.g[r].ctl { push(out, "handler cancelled, request", i, r, Class::Step, s, |n| fin(n, Ph::FinX)) }
            let lives = !(cfg.quick && r == 0 && s.f.kill + s.f.slay > 0);
            if suspect(&m, cfg) && !m.over && !m.over_ok && lives { push(out, "trial is over, request", i, r, Class::Step, s, |n| { let g = &mut n.g[r]; g.out = g.out || (g.run && g.att == m.att); n.w[i].m[r].over = true }) }
            if r == 0 && s.f.kill > 0 {
                if isolated(&m, cfg) { push(out, "handler KILLS its child, request", i, r, Class::Fault, s, |n| {
                    n.f.kill -= 1;
                    let several = cfg.parted && (0..R).any(|q| q != r && together(&m, &w.m[q]));
                    for q in (0..R).filter(|q| *q == r || together(&m, &w.m[*q])) {
                        let ours = n.g[q].run && n.g[q].att == w.m[q].att;
                        let g = &mut n.g[q];
                        if several { g.parted = g.parted || ours } else { g.may = g.may || (ours && q == r) }
                        let x = &mut n.w[i].m[q];
                        x.ph = if several { Ph::FinParted } else { Ph::FinDied }; x.prog = false; x.over = false;
                        n.w[i].ex[q] = 0 } }) }
                else { push(out, "handler KILLS its worker, request", i, r, Class::Fault, s, |n| { n.f.kill -= 1; crash(n, i, cfg) }) }
            }
            if r == 0 && s.f.slay > 0 { push(out, "handler KILLS its worker, child or not, request", i, r, Class::Fault, s, |n| { n.f.slay -= 1; crash(n, i, cfg) }) }
        }
    }
}
