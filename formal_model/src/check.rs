//! The checker: breadth first over all states (so a counterexample is a shortest one), then backwards from the goal (nothing is
//! ever stuck). States are kept as 64-bit fingerprints of their canonical form.
use crate::broker::*;
use crate::rules::Cfg;
use crate::state::*;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

// Not violations, but worth knowing when reading a run.
const LATE: &str = "late start of an old attempt";
const HANDED: &str = "clean owner fenced";
const WAR: &str = "zombie's claim fences the owner";

#[derive(Default)]
pub struct Id(u64);
impl Hasher for Id {
    fn finish(&self) -> u64 { self.0 }
    fn write(&mut self, _: &[u8]) { unreachable!() }
    fn write_u64(&mut self, x: u64) { self.0 = x }
}
struct Fnv(u64, u64);
impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        let mut x = self.0 ^ self.1.rotate_left(32);
        x ^= x >> 33; x = x.wrapping_mul(0xff51afd7ed558ccd); x ^= x >> 33; x = x.wrapping_mul(0xc4ceb9fe1a85ec53); x ^ (x >> 33)
    }
    fn write(&mut self, b: &[u8]) { for c in b { self.0 = (self.0 ^ *c as u64).wrapping_mul(0x100000001b3); self.1 = (self.1.rotate_left(5) ^ *c as u64).wrapping_mul(0x517cc1b727220a95) } }
    fn write_u8(&mut self, c: u8) { self.write(&[c]) }
}
pub fn fp(s: &State) -> u64 { let mut h = Fnv(0xcbf29ce484222325, 0x9e3779b97f4a7c15); s.hash(&mut h); h.finish() }

pub struct Found { pub why: String, pub trace: Vec<String> }
pub struct Report { pub states: usize, pub edges: usize, pub depth: usize, pub found: Option<Found>, pub notes: Vec<&'static str>, pub full: bool,
    pub taken: std::collections::BTreeSet<&'static str> }

/// What must stay reachable without another fault. Free: also by waking frozen processes and by transaction timeouts.
/// Prompt: without either, as long as one process is not frozen: nobody ever waits for a transaction timeout.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Live { Off, Free, Prompt }
const PROMPT: u32 = 1 << 31;

pub fn check(cfg: &Cfg, f: Faults, one: bool, live: Live, cap: usize) -> Report {
    let mut seen: HashMap<u64, u32, BuildHasherDefault<Id>> = HashMap::default();
    let mut parent: Vec<u32> = vec![0];
    let mut fps: Vec<u64> = vec![];
    let (mut off, mut to): (Vec<u64>, Vec<u32>) = (vec![0], vec![]);
    let (mut goal, mut exempt): (Vec<bool>, Vec<bool>) = (vec![], vec![]);
    let init = State::init(f, one).canon();
    seen.insert(fp(&init), 0); fps.push(fp(&init));
    let mut layer = vec![init];
    let (mut n, mut edges, mut depth) = (0usize, 0usize, 0usize);
    let mut out: Out = vec![];
    let (mut zombie, mut handed, mut war) = (false, false, false);
    let mut taken = std::collections::BTreeSet::new();
    while !layer.is_empty() {
        let mut next = vec![];
        for s in &layer {
            let me = n as u32;
            n += 1;
            if let Some(why) = s.bad { return Report { states: seen.len(), edges, depth, notes: vec![], full: false, taken,
                found: Some(Found { why: why.into(), trace: trace(cfg, f, one, &parent, &fps, me) }) } }
            succ(s, cfg, &mut out);
            edges += out.len();
            goal.push(s.settled());
            exempt.push(s.w.iter().all(|w| w.up == Up::Frozen));
            for (l, c, t) in out.drain(..) {
                if l.0.starts_with("handler starts") && t.g[l.2 as usize].term { zombie = true }
                if l.0.starts_with("claim 2: init") {
                    let v = s.w.iter().find(|v| v.up == Up::Up && v.ok && v.id == l.2);
                    if v.is_some_and(|v| v.own == 0) && s.com.clean { handed = true }
                    if v.is_some_and(|v| v.own == 2) && !s.memb[l.1 as usize] { war = true }
                }
                taken.insert(l.0);
                let t = t.canon();
                let k = fp(&t);
                let len = seen.len() as u32;
                let x = *seen.entry(k).or_insert(len);
                if x == len { parent.push(me); fps.push(k); next.push(t) }
                if live != Live::Off && c != Class::Fault { to.push(if c == Class::Step { x | PROMPT } else { x }) }
            }
            off.push(to.len() as u64);
        }
        depth += 1;
        layer = next;
        if std::env::var("LAYERS").is_ok() { eprintln!("depth {depth} states {} frontier {} longest log {} ids {}", seen.len(), layer.len(),
            layer.iter().map(|s| s.log.len()).max().unwrap_or(0), layer.iter().map(|s| s.tx.len()).max().unwrap_or(0)) }
        if seen.len() > cap { return Report { states: seen.len(), edges, depth, found: None, notes: vec!["stopped at the cap"], full: false, taken } }
    }
    let mut found = None;
    if live != Live::Off {
        if let Some(x) = stuck(n, &off, &to, &goal, None) { found = Some((x, "stuck: no fair run without faults reaches all-terminal")) }
        else if live == Live::Prompt { if let Some(x) = stuck(n, &off, &to, &goal, Some(&exempt)) { found = Some((x, "stuck until a transaction timeout or a wake-up (10-20 s)")) } }
    }
    let found = found.map(|(x, why)| Found { why: why.into(), trace: trace(cfg, f, one, &parent, &fps, x) });
    Report { states: n, edges, depth, found, full: true, taken, notes: [(zombie, LATE), (handed, HANDED), (war, WAR)].iter().filter(|x| x.0).map(|x| x.1).collect() }
}

/// Backwards from the goal over all free edges, or (`exempt` given) over the prompt ones only.
fn stuck(n: usize, off: &[u64], to: &[u32], goal: &[bool], exempt: Option<&[bool]>) -> Option<u32> {
    let use_it = |x: u32| exempt.is_none() || x & PROMPT != 0;
    let mut deg = vec![0u64; n + 1];
    for x in to { if use_it(*x) { deg[(*x & !PROMPT) as usize + 1] += 1 } }
    for i in 0..n { deg[i + 1] += deg[i] }
    let mut rev = vec![0u32; to.len()];
    let mut pos = deg.clone();
    for i in 0..n { for k in off[i]..off[i + 1] { let x = to[k as usize]; if use_it(x) { let x = (x & !PROMPT) as usize; rev[pos[x] as usize] = i as u32; pos[x] += 1 } } }
    let mut good = goal.to_vec();
    let mut stack: Vec<u32> = (0..n as u32).filter(|i| good[*i as usize]).collect();
    while let Some(x) = stack.pop() {
        for k in deg[x as usize]..deg[x as usize + 1] { let y = rev[k as usize]; if !good[y as usize] { good[y as usize] = true; stack.push(y) } }
    }
    (0..n as u32).find(|i| !good[*i as usize] && !exempt.is_some_and(|e| e[*i as usize]))
}

/// Replays the path with concrete names: canonical forms are compared, so worker 0 stays worker 0.
fn trace(cfg: &Cfg, f: Faults, one: bool, parent: &[u32], fps: &[u64], mut x: u32) -> Vec<String> {
    let mut path = vec![x];
    while x != 0 { x = parent[x as usize]; path.push(x) }
    path.reverse();
    let mut s = State::init(f, one);
    let mut lines = vec![];
    let mut out: Out = vec![];
    for k in &path[1..] {
        succ(&s, cfg, &mut out);
        let (l, _, t) = out.drain(..).find(|(_, _, t)| fp(&t.canon()) == fps[*k as usize]).expect("replay");
        lines.push(show(&l, &s, &t));
        s = t;
    }
    lines
}

fn show(l: &Lab, s: &State, t: &State) -> String {
    let who = if l.0.starts_with("broker") && !l.0.contains("session exp") || l.0.starts_with("network") || l.0.starts_with("client") { String::new() } else { format!("{}: ", ['A', 'B'][l.1 as usize]) };
    let mut x = format!("{who}{}", l.0);
    if l.0.contains(" id") && who.is_empty() { x += &format!(" x{}", l.1) }
    if l.0.contains("request") && !l.0.contains("another request") || l.0.contains("cancel") { x += &format!(" r{}", l.2) }
    if l.0.contains("another request") { x += &format!(" at the offset of r{}", l.2) }
    if l.0.contains("begins a batch") || l.0.contains("on_revoke begins") { x += &format!(" {:?}", t.w[l.1 as usize].plan) }
    if l.0.contains("claim 2: init") { x += &format!(" x{}", l.2) }
    if (l.0.contains("starts") || l.0.contains("recovery")) && t.w[l.1 as usize].id != s.w[l.1 as usize].id { x += &format!(" (id x{})", t.w[l.1 as usize].id) }
    if !t.com.set && s.com.set { x += "   => nothing recorded" }
    else if t.com != s.com { x += &format!("   => recorded {} seq {} {} {}", if t.com.id == NONE { "nobody".into() } else { format!("x{}", t.com.id) }, t.com.seq, if t.com.recov { "recovering" } else if t.com.clean { "clean" } else { "open" },
        t.com.l.iter().map(|l| match l.st { St::New => "-".into(), St::Created => "created".into(), St::Done => "done".into(),
            St::Started => format!("started(att {} lost {}{})", l.att, l.lost, ["", " run", " TRIAL"][l.mark as usize]) }).collect::<Vec<String>>().join(", ")) }
    x
}

