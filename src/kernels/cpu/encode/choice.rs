//! Which screen a call uses: the one that was set, or the fastest on the rows at hand. Nothing is computed twice to find out: the first
//! calls of a shape do their first rows with one screen after the other, and the rest with the best of them, which later calls remember.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Instant;

use super::isa::Isa;
use super::panels::BLOCK;
use super::screen::{screen, Encoder, Mode, Screen};

/// Rows from which rounding the encoder pays.
const ROWS_FOR_ROUNDING: usize = 256;
/// Rows per thread that each screen is tried on.
const TRIAL: usize = 4 * BLOCK;

/// What decides how long a screen takes: rows (as a power of two), width, latents, k (0 for thresholds).
type Shape = (u32, usize, usize, usize);

/// Calls of a shape that try them all: a machine that others use too is slow now and then.
const TRIALS: usize = 3;

/// What is known of a shape: calls so far, and the least time that each screen would have taken for a whole one.
type Known = (usize, Vec<(Mode, f64)>);

static KNOWN: Mutex<BTreeMap<Shape, Known>> = Mutex::new(BTreeMap::new());

/// Calls `run` with rows of `x` `[n, d]`, all of them in order, and the encoder to use for them.
pub fn with_encoder(x: &[f32], d: usize, w: &[f32], bias: &[f32], k: usize, mut run: impl FnMut(&Encoder<'_>, Range<usize>)) {
    let (isa, n) = (Isa::best(), x.len() / d);
    let encoder = |mode| Encoder::new(isa, mode, w, bias, x, d);
    let settled = match screen() {
        Screen::Auto if n < ROWS_FOR_ROUNDING => Some(Mode::F32),
        Screen::Auto => None,
        Screen::Off => Some(Mode::F32),
        Screen::Bf16 => Some(Mode::Bf16),
        Screen::Int8 => Some(Mode::Int8),
    };
    let shape = (n.max(1).ilog2(), d, bias.len(), k);
    let tried: Vec<Mode> =
        [(isa.vnni, Mode::Int8), (isa.bf16, Mode::Bf16), (true, Mode::F32)].into_iter().filter(|t| t.0).map(|t| t.1).collect();
    let only = if tried.len() == 1 { Some(Mode::F32) } else { None };
    // A poisoned lock would mean a panic between two lines below: what it guards is whole all the same.
    let (trials, mut times) = KNOWN.lock().unwrap_or_else(|e| e.into_inner()).get(&shape).cloned().unwrap_or_default();
    let known = if trials >= TRIALS { fastest(&times) } else { None };
    if let Some(mode) = settled.or(only).or(known) {
        return run(&encoder(mode), 0..n);
    }
    let part = (n / 4).min(TRIAL * rayon::current_num_threads()).next_multiple_of(BLOCK);
    let (mut done, mut encoders) = (0, Vec::new());
    for mode in tried {
        // What is slow should not take many rows, nor a call with few rows all of them.
        let rows = done..(done + if mode == Mode::F32 { (part / 4).next_multiple_of(BLOCK) } else { part }).min(n);
        if rows.is_empty() {
            break;
        }
        let encoder = encoder(mode);
        let began = Instant::now();
        encoder.prepare();
        let prepared = began.elapsed().as_secs_f64();
        done = rows.end;
        let share = rows.len() as f64 / n as f64;
        run(&encoder, rows);
        let whole = prepared + (began.elapsed().as_secs_f64() - prepared) / share;
        match times.iter_mut().find(|t| t.0 == mode) {
            Some((_, least)) => *least = least.min(whole),
            None => times.push((mode, whole)),
        }
        encoders.push(encoder);
    }
    if let Some(encoder) = encoders.iter().find(|e| Some(e.mode()) == fastest(&times)) {
        run(encoder, done..n);
    }
    KNOWN.lock().unwrap_or_else(|e| e.into_inner()).insert(shape, (trials + 1, times));
}

fn fastest(times: &[(Mode, f64)]) -> Option<Mode> {
    times.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|t| t.0)
}
