//! Selections on a device against the CPU's, which is exact: the certified ones set for set and bit for bit, the plain ones against a
//! full sort of the same scores.

use candle_core::{Device, Tensor};

use super::super::batch::BatchChoice;
use super::super::encode::{chunk, finish, merged, room, Encoder, Lists};
use super::super::engine::{Arg, Buffer, Engine, Grid, Operands, NULL};
use super::super::seam;
use super::{buffer, schedules, values};
use crate::kernels::{self, Selection};
use crate::rng::Rng;

struct Case {
    name: &'static str,
    x: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
    d: usize,
    k: usize,
}

fn normals(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "device encode", 0);
    (0..len).map(|_| rng.normal() as f32).collect()
}

/// What selection meets: ties, signs, bounds that do not hold, sizes that fit nothing.
fn cases() -> Vec<Case> {
    let random = |name, seed, n: usize, d: usize, m: usize, k| Case {
        name,
        x: normals(seed, n * d),
        w: normals(seed + 1, m * d),
        b: normals(seed + 2, m).iter().map(|v| 0.1 * v).collect(),
        d,
        k,
    };
    let mut cases = vec![
        random("plain", 1, 9, 24, 700, 8),
        random("one latent", 2, 3, 5, 1, 1),
        random("k = 1", 3, 4, 7, 300, 1),
        random("all of them", 4, 3, 8, 40, 40),
        random("wide rows", 5, 2, 130, 257, 5),
    ];
    let mut c = random("equal atoms", 6, 5, 16, 600, 12);
    for j in 0..600 {
        let from = (j % 7) * 16;
        c.w.copy_within(from..from + 16, j * 16);
        c.b[j] = 0.25;
    }
    cases.push(c);
    let mut c = random("nothing positive", 7, 3, 16, 300, 4);
    c.b.fill(-1e3);
    cases.push(c);
    let mut c = random("fewer than k", 8, 4, 16, 300, 20);
    c.b.iter_mut().enumerate().filter(|(j, _)| j % 50 != 3).for_each(|(_, b)| *b = -1e3);
    cases.push(c);
    let mut c = random("rising bias", 9, 3, 16, 1200, 6);
    c.b.iter_mut().enumerate().for_each(|(j, b)| *b = j as f32 * 0.05);
    cases.push(c);
    let mut c = random("odd rows", 10, 8, 16, 400, 6);
    c.x[..16].fill(0.0);
    c.x[16] = f32::NAN;
    c.x[33] = f32::INFINITY;
    c.x[49] = f32::NEG_INFINITY;
    c.x[64..80].iter_mut().for_each(|v| *v *= 1e-40);
    c.x[80..96].iter_mut().for_each(|v| *v *= 1e30);
    c.x[97] = 3e3;
    cases.push(c);
    let mut c = random("odd atoms", 11, 4, 16, 400, 6);
    c.w[5 * 16] = f32::NAN;
    c.w[7 * 16 + 2] = f32::INFINITY;
    c.w[9 * 16..10 * 16].fill(0.0);
    c.b[9] = -0.0;
    c.w[11 * 16..12 * 16].iter_mut().for_each(|v| *v *= 1e25);
    c.b[13] = f32::NAN;
    cases.push(c);
    // Every score is within rounding of every other: no bound leaves anybody out.
    let mut c = random("too close", 12, 2, 16, 1500, 3);
    for j in 1..1500 {
        c.w.copy_within(0..16, j * 16);
        c.w[j * 16] *= 1.0 + j as f32 * 1e-7;
        c.b[j] = c.b[0];
    }
    cases.push(c);
    cases
}

fn tensors(c: &Case) -> [Tensor; 3] {
    let (n, m) = (c.x.len() / c.d, c.b.len());
    [
        Tensor::from_slice(&c.x, (n, c.d), &Device::Cpu).unwrap(),
        Tensor::from_slice(&c.w, (m, c.d), &Device::Cpu).unwrap(),
        Tensor::from_slice(&c.b, m, &Device::Cpu).unwrap(),
    ]
}

fn bits(s: &Selection) -> (Vec<u32>, Vec<u32>) {
    let values: Vec<f32> = s.values.flatten_all().unwrap().to_vec1().unwrap();
    (s.indices.flatten_all().unwrap().to_vec1().unwrap(), values.iter().map(|v| v.to_bits()).collect())
}

#[test]
fn certified_top_k_is_that_of_float64() {
    for case in cases() {
        let [x, w, b] = tensors(&case);
        let want = kernels::encode_topk(&x, &w, &b, case.k, None).unwrap();
        for engine in schedules() {
            let got = seam::encode_topk(&engine, &x, &w, &b, case.k, None).unwrap();
            assert_eq!(bits(&got), bits(&want), "{} under {engine:?}", case.name);
        }
    }
}

#[test]
fn thresholds_decide_as_float64_does() {
    for case in cases() {
        let [x, w, b] = tensors(&case);
        for level in [0f32, 1.5] {
            let threshold = Tensor::from_slice(&vec![level; case.b.len()], case.b.len(), &Device::Cpu).unwrap();
            let want = kernels::encode_threshold(&x, &w, &b, &threshold).unwrap();
            for engine in schedules() {
                let got = seam::encode_threshold(&engine, &x, &w, &b, &threshold).unwrap();
                assert_eq!(got, want, "{} above {level} under {engine:?}", case.name);
            }
        }
    }
}

/// The scores that the simulator's f32 product makes, sorted.
fn sorted(case: &Case) -> Vec<Vec<(u32, f32)>> {
    let row = |x: &[f32]| {
        let score = |(j, w): (usize, &[f32])| (j as u32, x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>() + case.b[j]);
        let mut row: Vec<(u32, f32)> = case.w.chunks_exact(case.d).enumerate().map(score).filter(|e| e.1 > 0.0).collect();
        row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        row
    };
    case.x.chunks_exact(case.d).map(row).collect()
}

struct Sorted {
    values: Buffer,
    indices: Buffer,
    lengths: Buffer,
}

fn run(engine: &dyn Engine, case: &Case, k: usize, guess: Arg) -> Sorted {
    let [x, w, b] = tensors(case);
    let n = case.x.len() / case.d;
    let address = |t| engine.address(t).unwrap();
    let encoder = Encoder { d_sae: case.b.len(), d: case.d, w: address(&w), bias: address(&b), half: None };
    let lists = Lists::new(engine, n, room(k, false)).unwrap();
    merged(engine, &encoder, n, (Operands::F32, address(&x), address(&w)), k, guess, &lists).unwrap();
    let [values, indices, lengths] = [n * k, n * k, n].map(|words| engine.alloc(4 * words).unwrap());
    finish(engine, &lists, n, k, &values, &indices, &lengths).unwrap();
    Sorted { values, indices, lengths }
}

#[test]
fn streamed_top_k_is_a_full_sort() {
    // Three chunks, and rows that rise through all of them.
    let mut long = Case { name: "long", x: normals(20, 8), w: normals(21, 20_000 * 4), b: vec![0.0; 20_000], d: 4, k: 40 };
    assert!(chunk(2, 20_000) < 20_000 / 2);
    long.b.iter_mut().enumerate().for_each(|(j, b)| *b = (j as f32 * 1e-3).floor());
    for case in cases().iter().chain([&long]) {
        let want = sorted(case);
        for engine in schedules() {
            let got = run(&engine, case, case.k, NULL);
            let (indices, lengths) = (values::<u32>(&engine, &got.indices), values::<u32>(&engine, &got.lengths));
            let found = values::<f32>(&engine, &got.values);
            for (r, want) in want.iter().enumerate() {
                let want = &want[..want.len().min(case.k)];
                assert_eq!(lengths[r] as usize, want.len(), "{} row {r} under {engine:?}", case.name);
                let row = indices[r * case.k..][..case.k].iter().zip(&found[r * case.k..][..case.k]).map(|(&j, &v)| (j, v.to_bits()));
                let padded = want.iter().map(|&(j, v)| (j, v.to_bits())).chain(std::iter::repeat((u32::MAX, 0)));
                assert!(row.eq(padded.take(case.k)), "{} row {r} under {engine:?}", case.name);
            }
        }
    }
}

#[test]
fn a_batch_keeps_its_largest() {
    for case in cases() {
        let rows = sorted(&case);
        let (n, width) = (rows.len(), case.b.len().min(64));
        let all: Vec<(u32, u32, f32)> =
            rows.iter().enumerate().flat_map(|(r, row)| row.iter().map(move |&(j, v)| (r as u32, j, v))).collect();
        for total in [1, n * case.k / 2 + 1, n * case.k] {
            let mut want = all.clone();
            want.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)).then(a.1.cmp(&b.1)));
            want.truncate(total);
            let smallest = want.last().map_or(f32::INFINITY, |e| e.2);
            want.sort_by_key(|e| e.0);
            for engine in schedules() {
                let mut batch = BatchChoice::new(&engine, n, total).unwrap();
                let held = run(&engine, &case, width, batch.guess());
                let chosen = batch.choose(&engine, (&held.values, &held.indices, &held.lengths), n, width, total, case.b.len()).unwrap();
                // It may only give up where a row really has as many as it may hold.
                if !chosen {
                    let full = (0..n as u32).any(|r| want.iter().filter(|e| e.0 == r).count() >= width);
                    assert!(full || rows.iter().any(|row| row.len() >= width), "{} {total}", case.name);
                    batch
                        .replace(&engine, n, total, {
                            let mut all = all.clone();
                            all.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)).then(a.1.cmp(&b.1)));
                            all
                        })
                        .unwrap();
                }
                let read = |at: u64, words: usize| -> Vec<u32> {
                    let copy = engine.alloc(4 * words).unwrap();
                    engine.copy(at, &copy, 4 * words).unwrap();
                    values(&engine, &copy)
                };
                let (starts, kept) = (read(batch.starts(), n + 1), want.len());
                let (indices, found) = (read(batch.indices(), total), read(batch.values(), total));
                assert_eq!(starts[n] as usize, kept, "{} {total} under {engine:?}", case.name);
                let got = (0..n as u32).flat_map(|r| (starts[r as usize]..starts[r as usize + 1]).map(move |e| (r, e as usize)));
                let got: Vec<(u32, u32, u32)> = got.map(|(r, e)| (r, indices[e], found[e])).collect();
                let want: Vec<(u32, u32, u32)> = want.iter().map(|&(r, j, v)| (r, j, v.to_bits())).collect();
                assert_eq!(got, want, "{} {total} under {engine:?}", case.name);
                assert_eq!(read(batch.smallest(), 1)[0], smallest.to_bits(), "{} {total}", case.name);
                // The next batch guesses a little below.
                let Arg::Ptr(guess) = batch.guess() else { panic!("a guess") };
                let guess = f32::from_bits(read(guess, 1)[0]);
                assert_eq!(guess, if smallest.is_finite() { 0.9 * smallest } else { 0.0 });
            }
        }
    }
}

#[test]
fn dead_latents_are_listed_and_selected_among() {
    let (n, m, k) = (7, 900, 30);
    let mut rng = Rng::stream(3, "dead", 0);
    let silent: Vec<u64> = (0..m).map(|_| (rng.uniform() * 20.0) as u64 * (1 << 33)).collect();
    let after = 10 * (1 << 33);
    let want: Vec<u32> = (0..m as u32).filter(|&j| silent[j as usize] >= after).collect();
    // Few values, so that ties abound; and too few positives in row 2.
    let mut scores: Vec<f32> = normals(5, n * want.len()).iter().map(|v| (v * 3.0).round() * 0.5).collect();
    scores[2 * want.len()..3 * want.len()].iter_mut().enumerate().for_each(|(i, v)| *v = if i % 40 == 0 { 1.0 } else { -1.0 });
    scores[3 * want.len()] = f32::NAN;
    let bias: Vec<f32> = (0..m).map(|j| if j % 3 == 0 { 0.5 } else { 0.0 }).collect();
    for engine in schedules() {
        let [list, count] = [4 * m, 4].map(|bytes| engine.alloc(bytes).unwrap());
        let silent = buffer(&engine, &silent);
        let args = [(&silent).into(), after.into(), (m as u32).into(), (&list).into(), (&count).into()];
        engine.launch("dead_list", Grid::line(1, 1024), &args).unwrap();
        assert_eq!(values::<u32>(&engine, &count)[0] as usize, want.len());
        assert_eq!(values::<u32>(&engine, &list)[..want.len()], want[..]);
        let (given, bias_there) = (buffer(&engine, &scores), buffer(&engine, &bias));
        let [indices, found] = [4 * n * k; 2].map(|bytes| engine.alloc(bytes).unwrap());
        let sizes = [n, want.len(), k].map(|v| Arg::from(v as u32));
        let args = [
            (&given).into(),
            (want.len() as u64).into(),
            (&bias_there).into(),
            (&list).into(),
            sizes[0],
            sizes[1],
            sizes[2],
            (&indices).into(),
            (&found).into(),
        ];
        engine.launch("select_rows", Grid::line(n, 256), &args).unwrap();
        let (indices, found) = (values::<u32>(&engine, &indices), values::<f32>(&engine, &found));
        for r in 0..n {
            let mut row: Vec<(u32, f32)> = want.iter().zip(&scores[r * want.len()..]).map(|(&j, s)| (j, s + bias[j as usize])).collect();
            row.retain(|e| e.1 > 0.0);
            row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            row.truncate(k);
            row.sort_by_key(|e| e.0);
            row.resize(k, (u32::MAX, 0.0));
            let got: Vec<(u32, f32)> = indices[r * k..][..k].iter().copied().zip(found[r * k..][..k].iter().copied()).collect();
            assert_eq!(got, row, "row {r} under {engine:?}");
        }
    }
}

#[test]
fn decoded_rows_are_the_cpu_s() {
    let case = &cases()[0];
    let [x, w, b] = tensors(case);
    let codes = kernels::encode_topk(&x, &w, &b, case.k, None).unwrap().to_codes(case.b.len()).unwrap();
    let bias = Tensor::from_slice(&normals(40, case.d), case.d, &Device::Cpu).unwrap();
    for offset in [None, Some(&bias)] {
        let want: Vec<f32> = kernels::decode_codes(&codes, &w, offset).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for engine in schedules() {
            let got: Vec<f32> = seam::decode_codes(&engine, &codes, &w, offset).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0)), "{engine:?}");
        }
    }
}
