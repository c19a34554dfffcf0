//! Which rules are run against which faults, and what each run must give.
use crate::check::*;
use crate::rules::{Cfg, RULES};
use crate::state::*;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Instant;

/// (what is flipped in `built`, faults, what the verdict must contain). "1: " before the faults: one request only, more faults.
type Row = (&'static str, &'static str, &'static str);
const TWICE: &str = "a death was counted that did not happen, or twice";
const UNCOUNTED: &str = "a death was not counted";
const SHARE: &str = "two executions share an attempt";
const CREATED2: &str = "second CREATED";
const AFTER: &str = "after the terminal";
const STALL: &str = "stuck until a transaction timeout";
const STUCK: &str = "stuck: no fair run";
const PASSES: &str = "the committed offset passes an unfinished request";
const LIVELOCK: &str = "livelock";
const H: &str = "holds";

/// What the code does.
const BUILT: &[Row] = &[
    ("", "crash=2", H), ("", "crash move", H), ("", "crash retry", H), ("", "move=2", H), ("", "expire", H), ("", "freeze", H),
    ("", "amb=2", H), ("", "amb crash", H), ("", "amb fence", H), ("", "amb move", H), ("", "tmo move", H), ("", "fence move", H),
    ("", "cancel crash", H), ("", "cancel amb", H), ("", "dup crash", H), ("", "dupc crash", H), ("", "prog crash", H),
    ("", "1: crash=3 move", H), ("", "1: crash=2 move=2 retry", H), ("", "1: crash freeze move amb", H), ("", "1: freeze=2 move", H),
    ("", "1: expire crash amb fence", H), ("", "1: prog freeze move crash", H), ("", "1: prog freeze amb fence", H), ("", "1: cancel freeze crash", H),
    ("", "1: tmo freeze amb", H), ("", "1: dup freeze crash", H), ("", "1: dupc freeze crash", H), ("", "1: retry freeze crash", H),
    ("same_id", "1: amb fence freeze", H), ("same_id", "amb crash", H),
];

/// Parts that a run can add: deaths, positions and lost offsets, a second band.
const PARTS: &[Row] = &[
    ("iso", "crash=2", H), ("iso child", "crash=2", H), ("iso child", "kill crash", H), ("iso child", "kill move", H), ("iso", "1: crash=2 freeze", H),
    ("iso innocent quick", "kill=2 move", H), ("iso child innocent quick", "slay=3", H), ("iso child innocent quick", "kill slay=2", H),
    ("iso innocent", "kill=3", H), ("iso innocent", "crash kill", H), ("iso innocent", "crash kill=2", H), ("iso child innocent", "slay=4", H), ("iso child innocent", "crash slay=2", H),
    ("iso child innocent", "kill=3", H), ("iso child innocent", "kill=2 slay", H),
    ("iso proc full", "1: kill=2 crash move", H), ("iso proc full", "1: kill freeze crash", H),
    ("pos", "crash del", H), ("pos", "1: del freeze", H), ("pos", "1: del crash=2 move", H), ("pos", "trunc", H),
    ("pos", "crash forget", H), ("pos", "1: crash=2 forget", H), ("pos", "1: freeze forget", H), ("pos", "1: expire forget", H), ("pos", "1: crash forget move", H),
    ("pos", "1: crash forget amb", H), ("pos", "1: crash forget retry", H), ("pos", "1: crash forget del", H),
    ("pos", "1: crash recreate", H), ("pos", "1: crash trunc", H),
    ("bands", "crash=2", H), ("bands", "crash move", H), ("bands", "amb crash", H), ("bands", "amb move", H), ("bands", "dupc crash", H), ("bands", "dup crash", H),
    ("pos bands", "crash forget", H), ("pos bands", "1: crash=2 forget", H), ("pos bands", "crash del", H),
];

/// tasks.schedule, a rule of the design that is not built yet.
const SCHEDULE: &[Row] = &[
    ("sched", "1: long crash=2 move", H), ("sched", "1: long freeze crash", H), ("sched", "1: long amb freeze", H), ("sched", "1: long move=2 crash", H),
    ("sched", "1: long retry crash move", H), ("sched", "1: long cancel freeze", H), ("sched", "1: long fence amb crash", H), ("sched", "long crash", H),
    ("sched", "1: long freeze=2", H), ("sched", "long move", H), ("sched", "1: long freeze move", H), ("sched", "1: long expire crash", H),
];

/// One rule taken out: the run must fail. Where it holds, another rule is its net.
const MUTATIONS: &[Row] = &[
    ("write_ahead", "1: ", "before its RUNNING is committed"),
    ("fence", "1: crash", STALL), ("fence_after", "1: crash", STALL), ("txn_claim", "1: crash", STALL), ("claim_commit", "1: crash", STALL),
    ("reclaim", "1: amb crash", STALL), ("stable", "1: freeze", CREATED2), ("fence stable", "1: crash=2", CREATED2),
    ("own_filter", "1: freeze", CREATED2), ("read_back", "1: amb=2", CREATED2), ("keep_batch_id", "1: amb", CREATED2),
    ("unique_ids", "1: freeze", LIVELOCK), ("poll_first", "1: fence freeze", H), ("same_id poll_first", "1: fence freeze", LIVELOCK), ("recycle_slow", "1: dup", AFTER),
    ("rejoin_slow", "1: dupc crash", CREATED2), ("end_first", "1: crash move", UNCOUNTED), ("mark", "crash=2", TWICE), ("mark", "1: crash retry", TWICE),
    ("mark charge_late", "1: crash=2 move", "a death was"),
    ("fence_rule fence", "1: prog freeze", "leaves the state machine"), ("fence_rule reclaim", "1: prog fence freeze", "leaves the state machine"),
    ("fence_rule poll_first reclaim", "1: prog=2 freeze", "leaves the state machine"),
    ("fence_rule", "1: prog freeze move", H), ("fence_rule", "1: prog fence freeze", H), ("fence_rule", "1: prog amb freeze crash", H),
    ("fence_former", "1: amb crash move", H), ("fence_former", "1: amb fence freeze", H), ("fence_former stable", "1: amb crash", CREATED2),
    ("fence_decided", "1: crash=2 move", H), ("fence_decided", "1: freeze move", H), ("fence_decided", "1: amb crash", H),
    ("fence_decided", "1: prog freeze move", H), ("fence_decided stable", "1: crash=2", CREATED2),
    ("deadline", "1: freeze=2", STALL),
    ("late_meta", "1: freeze move amb", H), ("late_meta", "1: prog expire crash", H),
    ("threads", "1: crash move", UNCOUNTED), ("threads", "1: freeze amb move", H),
    ("revoke_waits", "move=2", "holds (clean owner fenced)"),
    ("iso child innocent quick spare", "slay=2", TWICE), ("iso innocent quick trial_alone", "kill=3", H), ("iso innocent quick trial_alone held", "kill=4", TWICE),
    ("iso innocent alone", "kill=2", "a neighbour"), ("iso child innocent alone", "slay=3", "a neighbour"), ("iso innocent alone", "crash kill", "a neighbour"), ("iso innocent held", "kill=4", "a neighbour"),
    ("iso innocent quick one_trial", "kill=3", H), ("iso innocent quick one_trial alone", "kill=2", "a neighbour"),
    ("iso child innocent parted", "kill=2", "a neighbour"), ("iso child innocent parted", "kill crash", "a neighbour"), ("iso forgive", "1: crash", "still charged"),
    ("lives", "1: freeze", TWICE),
    ("iso proc full child_counts", "1: kill crash", UNCOUNTED), ("iso proc full child_clears", "1: kill crash", TWICE),
    ("pos by_id", "1: recreate", PASSES), ("pos by_id", "1: crash trunc", PASSES), ("pos bounds", "1: crash trunc", PASSES), ("pos skip", "crash del", H), ("pos goes_on", "crash del", STUCK),
    ("pos recall", "1: crash forget", AFTER), ("pos recall_end", "1: crash forget", CREATED2), ("pos says_recovering", "1: crash=2 forget", AFTER),
    ("pos fence_rule", "1: prog freeze forget", "the state machine"), ("pos stable", "1: freeze forget", CREATED2),
    ("pos close_recovering", "1: crash forget move", AFTER), ("pos bands whole_head", "1: crash=2 forget", AFTER),
    ("bands lead", "amb", CREATED2), ("bands one_txn", "crash", CREATED2), ("bands close_cells", "move", TWICE), ("bands claim_cells", "crash move", H),
    ("sched sched_early", "1: long crash", SHARE), ("sched sched_hw", "1: long freeze", SHARE), ("sched sched_start", "1: long crash", SHARE),
    ("sched sched_clean", "1: long move", TWICE), ("sched fence sched_hw", "1: long freeze", SHARE), ("sched fence", "1: long crash", STALL),
];

/// What the code does not keep.
const HOLES: &[Row] = &[
    ("pos", "1: tear", PASSES),
    ("iso innocent", "crash=2 kill=2", "a neighbour"),
];

/// Minutes and gigabytes.
const DEEP: &[Row] = &[
    ("", "crash=3", H), ("", "crash=2 move", H), ("", "crash freeze", H), ("", "freeze move", H), ("", "freeze amb", H),
    ("", "crash amb fence", H), ("", "freeze prog", H), ("", "dup dupc crash", H), ("", "1: crash=2 freeze=2 move", H), ("sched", "long crash move", H),
    ("bands", "freeze", H), ("iso child", "kill freeze", H), ("pos bands", "crash=2 forget", H), ("pos", "1: crash freeze forget", H), ("pos", "1: prog freeze forget", H), ("pos", "1: crash=2 trunc", H),
    ("iso child full innocent quick", "kill=2 slay", H), ("iso full innocent quick", "kill=3", H),
];

/// The traces in counterexamples.txt, beside those of the holes.
const TOLD: &[(&str, &str)] = &[
    ("stable", "1: freeze"), ("read_back", "1: amb=2"), ("recycle_slow", "1: dup"), ("rejoin_slow", "1: dupc crash"), ("end_first", "1: crash move"),
    ("mark", "crash=2"), ("mark", "1: crash retry"), ("fence_rule fence", "1: prog freeze"), ("pos fence_rule", "1: prog freeze forget"),
    ("iso innocent alone", "kill=2"), ("iso innocent held", "kill=4"), ("iso child innocent parted", "kill=2"), ("lives", "1: freeze"), ("iso proc full child_clears", "1: kill crash"), ("pos by_id", "1: recreate"), ("pos by_id", "1: crash trunc"), ("pos bounds", "1: crash trunc"),
    ("pos recall_end", "1: crash forget"), ("pos says_recovering", "1: crash=2 forget"), ("pos close_recovering", "1: crash forget move"),
    ("bands lead", "amb"), ("bands one_txn", "crash"), ("bands close_cells", "move"), ("pos bands whole_head", "1: crash=2 forget"),
    ("sched sched_start", "1: long crash"), ("sched sched_hw", "1: long freeze"),
];

const CAP: usize = 60_000_000;

fn faults(text: &str) -> Faults {
    let mut f = F0;
    for p in text.split_whitespace() {
        let (k, v) = p.split_once('=').map(|(k, v)| (k, v.parse().unwrap())).unwrap_or((p, 1));
        *f.field(k).unwrap_or_else(|| panic!("no fault is called {k}")) = v;
    }
    f
}

fn design(text: &str) -> Cfg {
    let mut c = Cfg::built();
    for k in text.split_whitespace().filter(|k| *k != "built") { assert!(c.flip(k), "no switch is called {k}") }
    c
}

struct Ran { line: String, verdict: String, trace: Vec<String>, good: bool, taken: BTreeSet<&'static str>, states: usize }

fn run(flips: &str, f: &str, want: &str, cap: usize) -> Ran {
    let (one, spec) = match f.strip_prefix("1: ") { Some(x) => (true, x), None => (false, f) };
    let fs = faults(spec);
    let r = check(&design(flips), fs, one, if fs.forget > 0 { Live::Free } else { Live::Prompt }, cap);
    let verdict: String = match &r.found { None if r.full => "holds".into(), None => "no violation up to the cap".into(), Some(x) => format!("VIOLATED in {} steps: {}", x.trace.len(), x.why) };
    let verdict: String = verdict + &r.notes.iter().map(|n| format!(" ({n})")).collect::<String>();
    let good = want.is_empty() || verdict.contains(want);
    let name = format!("built {flips}");
    let line = format!("{}{name:43} | {f:25} | {:>9} states {:>9} steps depth {:>3} | {verdict}", if good { "" } else { "UNEXPECTED " }, r.states, r.edges, r.depth);
    Ran { line, verdict, trace: r.found.map(|x| x.trace).unwrap_or_default(), good, taken: r.taken, states: r.states }
}

/// All rows on two threads (JOBS=n: on n), told in their order.
fn all(rows: &[Row]) -> Vec<Ran> {
    let jobs = std::env::var("JOBS").ok().and_then(|x| x.parse().ok()).unwrap_or(2);
    let (next, done) = (Mutex::new((0, 0)), Mutex::new((0..rows.len()).map(|_| None).collect::<Vec<Option<Ran>>>()));
    std::thread::scope(|threads| for _ in 0..jobs { threads.spawn(|| loop {
        let k = { let mut at = next.lock().unwrap(); at.0 += 1; at.0 - 1 };
        if k >= rows.len() { return }
        let ran = run(rows[k].0, rows[k].1, rows[k].2, CAP);
        let mut done = done.lock().unwrap();
        done[k] = Some(ran);
        let mut at = next.lock().unwrap();
        while at.1 < rows.len() { let Some(ran) = &done[at.1] else { break }; println!("{}", ran.line); at.1 += 1 }
    }); });
    done.into_inner().unwrap().into_iter().map(|x| x.unwrap()).collect()
}

pub fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let groups: Vec<(&str, &[Row])> = match a.first().map(|x| x.as_str()) {
        None => vec![("what the code does", BUILT), ("with further parts of it", PARTS), ("with tasks.schedule", SCHEDULE), ("one rule taken out", MUTATIONS), ("holes", HOLES)],
        Some("deep") => vec![("deep", DEEP)],
        Some("traces") => {
            let told = MUTATIONS.iter().filter(|x| TOLD.contains(&(x.0, x.1)));
            for (d, f, want) in told.chain(HOLES.iter().filter(|x| x.2 != H)) {
                let ran = run(d, f, want, CAP);
                println!("{}: {}", ran.line.split(" | ").take(2).map(str::trim).collect::<Vec<_>>().join(" | "), ran.verdict);
                for (i, l) in ran.trace.iter().enumerate() { println!("    {:2} {l}", i + 1) }
                println!()
            }
            return
        }
        Some("rules") => {
            for (name, built, text) in RULES { println!("{name:18} {:3}  {text}", if *built { "on" } else { "off" }) }
            for (name, text) in FAULTS { println!("{name:18}      {text}") }
            return
        }
        Some(d) => {
            let ran = run(d, a.get(1).map(|x| x.as_str()).unwrap_or(""), "", a.get(2).and_then(|x| x.parse().ok()).unwrap_or(CAP));
            println!("{}", ran.line);
            for (i, l) in ran.trace.iter().enumerate() { println!("    {:2} {l}", i + 1) }
            return
        }
    };
    let t = Instant::now();
    let (mut passed, mut failed, mut states, mut taken) = (0, 0, 0, BTreeSet::new());
    for (title, rows) in groups {
        println!("== {title}");
        for ran in all(rows) { if ran.good { passed += 1 } else { failed += 1 } states += ran.states; taken.extend(ran.taken) }
    }
    println!("{states} states; {} kinds of step, each taken", taken.len());
    eprintln!("{:.0} s", t.elapsed().as_secs_f32()); // not among the results: they are the same every time
    println!("{passed} passed, {failed} failed");
    std::process::exit((failed > 0) as i32);
}
