//! Every screen with all instructions that this machine has, against the definition, to the bit.

use super::choice;
use super::counts::encode_counts;
use super::isa::Isa;
use super::screen::{Encoder, Mode};
use super::{int8, threshold, topk};
use crate::codes::PAD;
use crate::rng::Rng;

/// The definition: float64 products in 32 lanes, added up by halves, plus the bias, rounded once.
fn score(x: &[f32], w: &[f32], bias: f32) -> f32 {
    let mut lanes = [0f64; 32];
    for (i, (&x, &w)) in x.iter().zip(w).enumerate() {
        lanes[i % 32] += f64::from(x) * f64::from(w);
    }
    for width in [16, 8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    (lanes[0] + f64::from(bias)) as f32
}

struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    d: usize,
    k: usize,
    ranks: Option<Vec<f32>>,
}

impl Case {
    fn random(rng: &mut Rng, (n, d, m, k): (usize, usize, usize, usize)) -> Self {
        let mut normal = |len: usize, scale: f64| (0..len).map(|_| (rng.normal() * scale) as f32).collect::<Vec<_>>();
        Self { x: normal(n * d, 1.0), w: normal(m * d, 0.3), bias: normal(m, 0.05), d, k, ranks: None }
    }

    fn scores(&self) -> Vec<Vec<f32>> {
        let of_row = |x: &[f32]| self.w.chunks_exact(self.d).zip(&self.bias).map(|(w, &b)| score(x, w, b)).collect();
        self.x.chunks_exact(self.d).map(of_row).collect()
    }

    /// Sorting all scores.
    fn largest(&self, scores: &[Vec<f32>]) -> (Vec<u32>, Vec<f32>) {
        let (mut indices, mut values) = (Vec::new(), Vec::new());
        for row in scores {
            let ranked = |j: u32| self.ranks.as_ref().map_or(row[j as usize], |r| row[j as usize] * r[j as usize]);
            let mut order: Vec<u32> = (0..row.len() as u32).filter(|&j| ranked(j) > 0.0).collect();
            order.sort_by(|&a, &b| ranked(b).total_cmp(&ranked(a)).then(a.cmp(&b)));
            order.truncate(self.k);
            values.extend(order.iter().map(|&j| row[j as usize]).chain(std::iter::repeat_n(0.0, self.k - order.len())));
            indices.extend(order.iter().copied().chain(std::iter::repeat_n(PAD, self.k - order.len())));
        }
        (indices, values)
    }

    fn check(&self, what: &str) {
        let (n, m) = (self.x.len() / self.d, self.bias.len());
        let scores = self.scores();
        let want = self.largest(&scores);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        // Somewhere among the selected, so that equality occurs.
        let least = want.1.iter().copied().filter(|v| v.is_finite() && *v > 0.0).fold(f32::MAX, f32::min);
        let thresholds: Vec<f32> = (0..m).map(|j| if j % 7 == 0 { 0.0 } else { least }).collect();
        for isa in Isa::all() {
            for mode in [Mode::F32, Mode::Bf16, Mode::Int8] {
                let encoder = Encoder::new(isa, mode, &self.w, &self.bias, &self.x, self.d);
                let (mut indices, mut values) = (vec![PAD; n * self.k], vec![0.0; n * self.k]);
                topk::encode(&encoder, &self.x, self.k, self.ranks.as_deref(), &mut indices, &mut values);
                assert!(indices == want.0, "{what}: {mode:?} on {isa:?} selects others");
                assert!(bits(&values) == bits(&want.1), "{what}: {mode:?} on {isa:?} has other values");
                let codes = threshold::encode(&encoder, &self.x, &thresholds);
                for (r, row) in scores.iter().enumerate() {
                    let (got, values) = codes.row(r);
                    let mut got: Vec<(u32, u32)> = got.iter().zip(values).map(|(&j, v)| (j, v.to_bits())).collect();
                    got.sort_unstable();
                    let above = (0..m as u32).filter(|&j| row[j as usize] > thresholds[j as usize]);
                    let above: Vec<(u32, u32)> = above.map(|j| (j, row[j as usize].to_bits())).collect();
                    assert!(got == above, "{what}: {mode:?} on {isa:?}, row {r}: others above the thresholds");
                }
            }
        }
    }
}

const SHAPES: [(usize, usize, usize, usize); 6] =
    [(70, 33, 1100, 9), (3, 1, 50, 4), (65, 64, 1021, 1), (5, 17, 30, 30), (130, 70, 700, 40), (64, 4, 7, 7)];

/// Bounds of every score hold, and the worst of many rows comes near them: they are not slack that hides a mistake.
#[test]
fn bounds_hold_and_are_nearly_reached() {
    let mut rng = Rng::stream(10, "test", 0);
    for mode in [Mode::F32, Mode::Bf16, Mode::Int8] {
        let mut nearest = 0f64;
        for d in [1, 2, 3, 5, 40] {
            let case = Case::random(&mut rng, (256, d, 200, 1));
            let scores = case.scores();
            for isa in Isa::all() {
                let encoder = Encoder::new(isa, mode, &case.w, &case.bias, &case.x, d);
                let mut seen = 0;
                encoder.walk(
                    &case.x,
                    |_| 1.0,
                    |_| Some(f32::NEG_INFINITY),
                    |j, q, low, high| {
                        let score = scores[q][j as usize];
                        assert!(low <= score && score <= high, "{mode:?} on {isa:?}: {score} is not between {low} and {high}");
                        let (middle, half) = ((f64::from(low) + f64::from(high)) / 2.0, (f64::from(high) - f64::from(low)) / 2.0);
                        nearest = nearest.max((f64::from(score) - middle).abs() / half);
                        seen += 1;
                        None
                    },
                );
                assert_eq!(seen, 256 * 200);
            }
        }
        assert!(nearest > if mode == Mode::F32 { 0.01 } else { 0.9 }, "{mode:?}: never nearer than {nearest}");
    }
}

#[test]
fn random_rows() {
    let mut rng = Rng::stream(11, "test", 0);
    for shape in SHAPES {
        let mut case = Case::random(&mut rng, shape);
        case.check("random");
        case.ranks = Some((0..shape.2).map(|j| 0.5 + (j % 5) as f32 * 0.3).collect());
        case.check("ranked");
        case.ranks = None;
        case.bias.iter_mut().for_each(|b| *b = -1.5);
        case.check("few positives");
        case.bias.iter_mut().for_each(|b| *b = -1e3);
        case.check("no positives");
    }
}

#[test]
fn ties_and_zeros() {
    let mut rng = Rng::stream(12, "test", 0);
    for shape in SHAPES {
        let mut case = Case::random(&mut rng, shape);
        let mut few = |v: &mut Vec<f32>| v.iter_mut().for_each(|v| *v = [-1.0, -0.0, 0.0, 1.0, 2.0][rng.below(5) as usize]);
        few(&mut case.x);
        few(&mut case.w);
        few(&mut case.bias);
        case.check("ties");
        case.w.fill(1.0);
        case.check("all alike");
        case.w.fill(-0.0);
        case.check("zeros");
        case.x.fill(0.0);
        case.check("zero rows");
    }
}

#[test]
fn near_ties() {
    let mut rng = Rng::stream(13, "test", 0);
    for shape in SHAPES {
        let mut case = Case::random(&mut rng, shape);
        let d = case.d;
        let first = case.w[..d].to_vec();
        for row in case.w.chunks_exact_mut(d).step_by(2) {
            row.copy_from_slice(&first);
            let c = rng.below(d as u64) as usize;
            row[c] = [row[c].next_up(), row[c], row[c].next_down()][rng.below(3) as usize];
        }
        case.bias.fill(0.0);
        case.check("near ties");
    }
    assert!(encode_counts().near_ties > 0);
}

#[test]
fn sorted_latents() {
    let mut rng = Rng::stream(14, "test", 0);
    for shape in SHAPES {
        let mut case = Case::random(&mut rng, shape);
        let (d, m) = (case.d, case.bias.len());
        let base = case.w[..d].to_vec();
        for (j, row) in case.w.chunks_exact_mut(d).enumerate() {
            row.iter_mut().zip(&base).for_each(|(w, b)| *w = b * (j + 1) as f32 / m as f32);
        }
        case.bias.fill(0.0);
        case.check("ascending");
        let reversed: Vec<f32> = case.w.chunks_exact(d).rev().flatten().copied().collect();
        case.w = reversed;
        case.check("descending");
    }
}

#[test]
fn massive_coordinates() {
    let mut rng = Rng::stream(15, "test", 0);
    for shape in SHAPES {
        for (every, by) in [(17, 30.0), (17, 1e4), (3, 100.0)] {
            let mut case = Case::random(&mut rng, shape);
            let d = case.d;
            case.x.chunks_exact_mut(d).for_each(|row| row.iter_mut().step_by(every).for_each(|v| *v *= by));
            case.check("massive coordinates");
        }
    }
    let mut case = Case::random(&mut rng, (64, 64, 8, 1));
    case.x.chunks_exact_mut(64).for_each(|row| row.iter_mut().step_by(20).for_each(|v| *v *= 50.0));
    assert_eq!(int8::outliers(&case.x, 64), [0, 20, 40, 60]);
}

#[test]
fn tiny_and_huge_numbers() {
    let mut rng = Rng::stream(16, "test", 0);
    for shape in [(70, 5, 150, 9), (3, 1, 50, 4), (65, 33, 70, 1)] {
        for (of_x, of_w) in
            [(1e-22, 1e-22), (1e-40, 1.0), (1.0, 1e-40), (1e17, 1e-39), (1e-39, 1e17), (1e17, 1e17), (1e-45, 1e-45), (1e30, 1e-30)]
        {
            let mut case = Case::random(&mut rng, shape);
            let scale = |v: &mut Vec<f32>, by: f64| v.iter_mut().for_each(|v| *v = (f64::from(*v) * by) as f32);
            scale(&mut case.x, of_x);
            scale(&mut case.w, of_w);
            case.bias.fill(0.0);
            case.check("tiny and huge");
            // Rows and latents of all sizes at once.
            for (i, v) in case.x.iter_mut().enumerate() {
                *v *= [1.0, 1e-20, 1e10][i / case.d % 3];
            }
            case.check("mixed sizes");
        }
    }
}

#[test]
fn what_no_bound_holds_for() {
    let mut rng = Rng::stream(17, "test", 0);
    for shape in [(70, 8, 300, 3), (5, 17, 30, 30)] {
        for v in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38, -3e38] {
            let mut case = Case::random(&mut rng, shape);
            let (x, w, b) = (case.x.len() - 3, case.w.len() / 2, case.bias.len() - 1);
            let before = std::mem::replace(&mut case.x[x], v);
            case.check("a wild row");
            case.x[x] = before;
            let before = std::mem::replace(&mut case.w[w], v);
            case.check("a wild latent");
            case.w[w] = before;
            case.bias[b] = v;
            case.check("a wild bias");
        }
    }
}

/// Many more rows than a test should take: `cargo test --release --lib soak -- --ignored`.
#[test]
#[ignore = "a minute or more"]
fn soak() {
    let mut rng = Rng::stream(18, "test", 0);
    let (rows, d, m, k) = (4096, 24, 384, 8);
    let before = encode_counts();
    for round in 0..250 {
        let mut case = Case::random(&mut rng, (rows, d, m, k));
        match round % 4 {
            1 => case.w.iter_mut().for_each(|w| *w = (*w * 4.0).round()),
            2 => {
                let first = case.w[..d].to_vec();
                case.w.chunks_exact_mut(d).step_by(3).for_each(|row| {
                    row.copy_from_slice(&first);
                    row[rng.below(d as u64) as usize] *= 1.0 + f32::EPSILON;
                });
            }
            3 => case.x.chunks_exact_mut(d).for_each(|row| row[5] *= 40.0),
            _ => {}
        }
        let encode = |mode| {
            let encoder = Encoder::new(Isa::best(), mode, &case.w, &case.bias, &case.x, d);
            let (mut indices, mut values) = (vec![PAD; rows * k], vec![0f32; rows * k]);
            topk::encode(&encoder, &case.x, k, None, &mut indices, &mut values);
            (indices, values)
        };
        let want = case.largest(&case.scores());
        for mode in [Mode::F32, Mode::Bf16, Mode::Int8] {
            assert!(encode(mode) == want, "round {round}: {mode:?} selects others");
        }
    }
    let counts = encode_counts().since(before);
    assert!(counts.near_ties > 0, "{counts:?}");
    assert!(counts.rows >= 3_000_000, "{counts:?}");
}

#[test]
fn a_first_call_does_all_rows_and_remembers() {
    let mut rng = Rng::stream(19, "test", 0);
    let case = Case::random(&mut rng, (1000, 16, 300, 5));
    let want = case.largest(&case.scores());
    for _ in 0..2 {
        let (mut indices, mut next) = (vec![PAD; 5000], 0);
        choice::with_encoder(&case.x, 16, &case.w, &case.bias, 5, |encoder, rows| {
            assert_eq!(rows.start, next);
            next = rows.end;
            let of = rows.start * 5..rows.end * 5;
            topk::encode(encoder, &case.x[rows.start * 16..rows.end * 16], 5, None, &mut indices[of.clone()], &mut vec![0.0; of.len()]);
        });
        assert_eq!(next, 1000);
        assert!(indices == want.0);
    }
}
