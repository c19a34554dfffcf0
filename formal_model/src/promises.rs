//! The invariants: what is checked when something is decided at the coordinator, and when a read_committed reader sees it.
use crate::rules::Cfg;
use crate::state::*;

pub fn bad(s: &mut State, why: &'static str) { if s.bad.is_none() { s.bad = Some(why) } }

pub fn close_tx(s: &mut State, id: u8, st: Ts) {
    let t = &mut s.tx[id as usize];
    t.st = if t.status || t.offs || t.sched { st } else { Ts::Empty };
}

/// EndTxn(commit) took effect at the coordinator: from here on the transaction will become visible. Ghosts follow it.
pub fn decide(s: &mut State, id: u8, cfg: &Cfg) {
    let evs: Vec<Ev> = s.log.iter().filter(|e| e.id == id && e.res == Res::Open).map(|e| e.ev).collect();
    for e in evs { if let Some(why) = event(s, e, cfg) { bad(s, why) } }
    if let Some(p) = s.pend.iter().find(|p| p.id == id) {
        let p = *p;
        if p.rec.clean && p.cells & 1 != 0 { for r in 0..R { s.g[r].run = false } }
        passes(s, &p.rec, p.cells, cfg);
        if cfg.iso { for r in 0..R { acquitted(s, r, p.rec.l[r]) } }
    }
    close_tx(s, id, Ts::Commit);
}

/// What the transaction says about who stood trial: it did not, or it outlived it, and then its deaths are forgiven.
fn acquitted(s: &mut State, r: usize, l: L) {
    let was = s.com.l[r];
    let over = was.st == St::Started && was.mark == 2 && was.att == l.att && l.mark == 1;
    let g = &mut s.g[r];
    let bad_why = if over && l.lost > 0 { Some("an acquitted request is still charged") }
        else if (over || (l.st == St::Started && l.lost < g.lost)) && !g.out { Some("deaths were forgiven without a trial") } else { None };
    if over { g.lost = 0; g.forgiven = true }
    if let Some(why) = bad_why { bad(s, why) }
}

fn event(s: &mut State, e: Ev, cfg: &Cfg) -> Option<&'static str> {
    let g = &mut s.g[e.r as usize];
    let mut why = None;
    if g.term { why = Some("an event is committed after the terminal one") }
    let new = e.k == K::Running && e.a == g.att + 1;
    if e.k == K::Parted {
        if !g.parted { why = Some("a group's death was told that did not happen") }
        g.lost = g.lost.max(cfg.suspect()); g.parted = false;
        if e.lost != g.lost { why = Some("a death of several was charged to one of them") }
    }
    if e.k == K::Lost && g.forgiven { g.lost = g.lost.max(cfg.suspect()) } // it was in quarantine to its end
    if e.k == K::Died {
        if !g.may { why = Some("a child's death was told that did not happen") }
        g.must = true;
    }
    if new || e.k == K::Lost {
        let d = e.lost as i8 - g.lost as i8;
        if !g.blur {
            if d < g.must as i8 { why = Some("a death was not counted") }
            if d > g.may as i8 { why = Some("a death was counted that did not happen, or twice") }
        }
        g.lost = e.lost; g.must = false; g.may = false; g.died = false; g.blur = false;
        g.parted = false; g.out = false; g.forgiven = false;
    }
    match e.k {
        K::Created => {}
        K::Running if new => { g.att = e.a; g.granted |= 1 << e.a; g.run = true }
        K::Running => {}
        K::Retry | K::Died | K::Parted => g.run = false,
        K::Ended | K::Lost => { g.term = true; g.run = false }
        K::Cancelled => {
            if e.a == 0 && g.started != 0 { why = Some("CREATED -> CANCELLED of a request that was started") }
            g.term = true; g.run = false
        }
    }
    if e.k == K::Lost && e.r == 1 && cfg.innocent { why = Some("a neighbour is quarantined for deaths that were not its own") }
    why
}

/// The committed offset, and every finished run above it, is held to what has really ended.
pub fn passes(s: &mut State, rec: &Rec, cells: u8, cfg: &Cfg) {
    for (c, cell) in cfg.cells().iter().enumerate() { for &r in *cell {
        let g = &s.g[r];
        if cells >> c & 1 == 1 && rec.l[r].st == St::Done && !g.term && !g.excused && !s.cut[r] && !cfg.sched { bad(s, "the committed offset passes an unfinished request") }
    } }
}

/// A process died: each request that it was running has a death to be counted.
pub fn died(s: &mut State, ex: [u8; R], cfg: &Cfg) {
    for r in 0..R {
        let g = &mut s.g[r];
        if ex[r] != 0 && ex[r] == g.att && !g.term { if cfg.iso { g.died = true } else { g.must = true } }
    }
}

/// A new owner has claimed: who may, and who must, be charged for the end of the last one. Reads the record before the claim's.
pub fn claimed_anew(s: &mut State, i: usize, cfg: &Cfg) {
    // This process was the last owner, and lives. What tasks.schedule has marked may be charged: a claim does not rewrite that.
    let same = !cfg.sched && s.com.set && s.com.id == s.w[i].id;
    let convicts = crate::claim::convicts(&s.com, cfg, |r| s.g[r].run);
    for r in 0..R {
        let l = s.com.l[r];
        let g = &mut s.g[r];
        if !g.run { continue }
        let own = !same && (!cfg.iso || if convicts { l.mark == 2 } else { l.lost < cfg.suspect() });
        g.may = g.may || own;
        g.must = g.must || (own && g.died);
        g.run = false; g.died = false;
    }
}

pub fn read_history(s: &mut State) {
    let mut at = 0;
    while at < s.log.len() { // aborted ones are never seen by anybody; dropping them keeps the model finite
        if s.log[at].res == Res::Aborted { s.log.remove(at); nearer(s, at) } else { at += 1 }
    }
    s.slog.retain(|e| e.res != Res::Aborted);
    while !s.log.is_empty() && s.log[0].res != Res::Open {
        let e = s.log.remove(0);
        nearer(s, 0);
        let g = &mut s.g[e.ev.r as usize];
        let a = e.ev.a;
        let (ok, hk, ha) = match e.ev.k {
            K::Created => (g.hk == 0, 1, 0),
            K::Running | K::Retry | K::Died | K::Parted => ((g.hk == 1 && a == 1) || (g.hk == 2 && (a == g.ha || a == g.ha + 1)), 2, a),
            K::Ended | K::Lost => (g.hk == 2 && a == g.ha, 3, a),
            K::Cancelled => (g.hk == 1 || g.hk == 2, 3, a),
        };
        let was = g.hk;
        g.hk = hk; g.ha = ha;
        if !ok { bad(s, match (e.ev.k, was) { (K::Created, _) => "second CREATED in the read_committed history",
            (_, 3) => "event after the terminal one in the read_committed history", _ => "history leaves the state machine" }) }
    }
    while !s.slog.is_empty() && s.slog[0].res != Res::Open {
        let e = s.slog.remove(0);
        s.sval[e.r as usize] = e.v
    }
}

/// The record at this place behind the LSO is read or gone: who waits for the end of tasks.status is nearer to it.
fn nearer(s: &mut State, at: usize) { for w in s.w.iter_mut() { if w.hw as usize > at { w.hw -= 1 } } }

/// The record of r is no longer in the log.
pub fn excuse(s: &mut State, r: usize) { if !s.g[r].term { s.g[r].excused = true } }

/// What tasks.status tells a reader of the present record at this offset; as in Mem.fact.
pub fn told(g: &Gh) -> u8 { match g.hk { 0 => 0, 3 => ENDED, _ => 1 + g.ha } }
