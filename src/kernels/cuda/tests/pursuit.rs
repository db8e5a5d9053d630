//! Matching pursuits, against the CPU's.

use candle_core::{Device, Tensor};

use super::super::engine::Engine;
use super::super::pursuit::{orthogonal_room, pursue, pursue_orthogonally, Atoms, Path, Room, REFRESH};
use super::super::seam;
use super::trial::{assert_close, every_schedule, get, normals, put};
use crate::codes::PAD;
use crate::kernels::{fill_gram, new_gram, orthogonal_pursuit, pursuit, Pick, PursuitPath, PursuitRule};
use crate::rng::Rng;

const RULE: PursuitRule = PursuitRule { steps: 8, pick: Pick::NonNeg, tolerance: 0.0, relative: false, stop_on_repeat: false };
const PICKS: [Pick; 3] = [Pick::NonNeg, Pick::Max, Pick::Signed];

fn tensor(data: &[f32], shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(data.to_vec(), shape, &Device::Cpu).unwrap()
}

fn unit(seed: u64, m: usize, d: usize) -> Vec<f32> {
    let mut atoms = normals(seed, m * d, 1.0);
    for atom in atoms.chunks_exact_mut(d) {
        let norm = atom.iter().map(|v| v * v).sum::<f32>().sqrt();
        atom.iter_mut().for_each(|v| *v /= norm);
    }
    atoms
}

fn gram_of(atoms: &Tensor) -> Tensor {
    let gram = new_gram(atoms).unwrap().unwrap();
    fill_gram(atoms, &gram).unwrap();
    gram
}

/// Indices, values, residuals; numbers as their bits, so that NaN equals itself.
type Bits = (Vec<u32>, Vec<u32>, Vec<u32>);

fn bits(path: &PursuitPath) -> Bits {
    let of = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    (path.indices.flatten_all().unwrap().to_vec1().unwrap(), of(&path.values), of(&path.residual))
}

/// On the device, by the seam: with and without a Gram matrix, the same under every schedule.
fn both(x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> [Bits; 2] {
    let gram = gram_of(atoms);
    [Some(&gram), None].map(|gram| every_schedule(|engine| bits(&seam::pursuit(engine, x, atoms, gram, rule).unwrap())))
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&b| f32::from_bits(b)).collect()
}

/// Steps as the CPU takes them, but for atoms that are equal to f32: from there on a row is another, and counts as swapped.
fn swapped(got: &Bits, want: &Bits, n: usize, steps: usize, what: &str) -> usize {
    let (values, wanted) = (floats(&got.1), floats(&want.1));
    let (left, rest) = (floats(&got.2), floats(&want.2));
    let d = rest.len() / n;
    let mut swapped = 0;
    for r in 0..n {
        let row = r * steps..(r + 1) * steps;
        let same = got.0[row.clone()].iter().zip(&want.0[row.clone()]).take_while(|(g, w)| g == w).count();
        for t in row.start..(row.start + same + 1).min(row.end) {
            assert!(
                (values[t].abs() - wanted[t].abs()).abs() < 2e-6,
                "{what} row {r} step {}: {} for {}",
                t - row.start,
                values[t],
                wanted[t]
            );
        }
        if same < steps {
            swapped += 1;
        } else {
            let (left, rest) = (&left[r * d..(r + 1) * d], &rest[r * d..(r + 1) * d]);
            assert!(left.iter().zip(rest).all(|(a, b)| (a - b).abs() < 3e-6), "{what} row {r}: {left:?} for {rest:?}");
        }
    }
    swapped
}

#[test]
fn paths_are_those_of_the_cpu() {
    for (n, d, m, steps) in [(6, 24, 200, 34), (4, 7, 21, 5), (1, 9, 131, 12), (2, 70, 600, 3)] {
        let (x, atoms) = (tensor(&normals(1, n * d, 1.0), (n, d)), tensor(&unit(2, m, d), (m, d)));
        let gram = gram_of(&atoms);
        for pick in PICKS {
            for (tolerance, relative, stop_on_repeat) in [(0.0, false, false), (0.8, false, false), (0.3, true, false), (0.0, false, true)]
            {
                // Long pursuits by one rule each.
                if steps > REFRESH && (tolerance > 0.0 || stop_on_repeat) {
                    continue;
                }
                let rule = PursuitRule { steps, pick, tolerance, relative, stop_on_repeat };
                for (got, gram) in both(&x, &atoms, &rule).iter().zip([Some(&gram), None]) {
                    let want = bits(&pursuit(&x, &atoms, gram, &rule).unwrap());
                    let swapped = swapped(got, &want, n, steps, &format!("{rule:?} gram {}", gram.is_some()));
                    assert!(swapped <= n / 6, "{rule:?}: {swapped} of {n} rows");
                }
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_index() {
    // Signed axes, many of them the same, and zero atoms: arithmetic is exact.
    for seed in 0..6 {
        let mut rng = Rng::stream(seed, "test", 0);
        let (n, d, m) = (7, 4, 1 + rng.below(80) as usize);
        let x: Vec<f32> = (0..n * d).map(|_| rng.below(7) as f32 - 3.0).collect();
        let mut atoms = vec![0f32; m * d];
        for atom in atoms.chunks_exact_mut(d) {
            atom[rng.below(d as u64) as usize] = rng.below(3) as f32 - 1.0;
        }
        let (x, atoms) = (tensor(&x, (n, d)), tensor(&atoms, (m, d)));
        for pick in PICKS {
            let rule = PursuitRule { steps: 5, pick, ..RULE };
            let want = bits(&pursuit(&x, &atoms, None, &rule).unwrap());
            for got in both(&x, &atoms, &rule) {
                assert_eq!(got.0, want.0, "{rule:?}");
                assert_eq!(floats(&got.1), floats(&want.1));
                assert_eq!(floats(&got.2), floats(&want.2));
            }
        }
    }
}

#[test]
fn rows_end_where_the_rules_say() {
    let atoms = tensor(&[1., 0., 0.6, 0.8], (2, 2));
    let ended = |x: &[f32], rule: PursuitRule| {
        let [a, b] = both(&tensor(x, (1, 2)), &atoms, &rule);
        assert_eq!(a.0, b.0);
        a.0.into_iter().take_while(|&j| j != PAD).collect::<Vec<_>>()
    };
    assert!(ended(&[-1.0, -1.0], RULE).is_empty(), "nothing positive");
    assert_eq!(ended(&[-1.0, -1.0], PursuitRule { steps: 1, pick: Pick::Max, ..RULE }), [0]);
    assert_eq!(ended(&[-1.0, -1.0], PursuitRule { steps: 1, pick: Pick::Signed, ..RULE }), [1]);
    for pick in PICKS {
        assert!(ended(&[0.0, 0.0], PursuitRule { pick, ..RULE }).is_empty());
        assert!(ended(&[f32::NAN, 1.0], PursuitRule { pick, ..RULE }).is_empty(), "NaN is never selected");
    }
    let again = PursuitRule { pick: Pick::Signed, stop_on_repeat: true, ..RULE };
    assert_eq!(ended(&[2.0, 1.0], again), [0, 1, 0], "the step that takes an atom again counts, and is the last");
    assert_eq!(ended(&[2.0, 1.0], PursuitRule { tolerance: 1e3, ..RULE }).len(), 1, "looked at after a step");
    assert_eq!(ended(&[2.0, 1.0], PursuitRule { tolerance: 0.5, relative: true, ..RULE }).len(), 1);
    let none = tensor(&[], (0, 2));
    let path = every_schedule(|engine| bits(&seam::pursuit(engine, &tensor(&[2.0, 1.0], (1, 2)), &none, None, &RULE).unwrap()));
    assert_eq!((path.0, floats(&path.2)), (vec![PAD; 8], vec![2.0, 1.0]), "no atoms");
    let path = every_schedule(|engine| bits(&seam::pursuit(engine, &none, &atoms, None, &RULE).unwrap()));
    assert!(path.0.is_empty() && path.2.is_empty(), "no rows");
}

#[test]
fn blocks_of_rows_and_where_products_are_change_no_bit() {
    let (n, d, m, steps) = (8, 20, 132, 34);
    // One row ends at once, one after a step, in the middle of a block of others.
    let (mut x, atoms) = (normals(4, n * d, 1.0), unit(5, m, d));
    x[3 * d..4 * d].fill(0.0);
    x.copy_within(0..d, 6 * d);
    x[5 * d..6 * d].copy_from_slice(&atoms[17 * d..18 * d]);
    let gram = gram_of(&tensor(&atoms, (m, d))).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for pick in [Pick::NonNeg, Pick::Signed] {
        let rule = PursuitRule { steps, pick, tolerance: 1e-3, ..RULE };
        let run = |engine: &dyn Engine, with_gram: bool, rows: usize, shared: usize| {
            let [x, atoms, gram] = [&x, &atoms, &gram].map(|data| put(engine, data));
            let (indices, values) = (put(engine, &vec![7u32; n * steps]), put(engine, &vec![7f32; n * steps]));
            let residual = put(engine, &vec![7f32; n * d]);
            let to = Path { indices: indices.address, values: values.address, residual: residual.address };
            let of = Atoms { at: atoms.address, gram: with_gram.then_some(gram.address), m, d };
            pursue(engine, x.address, n, &of, &rule, &to, Room { rows, shared }).unwrap();
            (get::<u32>(engine, &indices, n * steps), get::<u32>(engine, &values, n * steps), get::<u32>(engine, &residual, n * d))
        };
        for with_gram in [true, false] {
            let want = every_schedule(|engine| run(engine, with_gram, n, 1 << 15));
            assert_eq!((want.0[3 * steps], want.0[5 * steps], want.0[5 * steps + 1]), (PAD, 17, PAD));
            assert_eq!(want.0[..steps], want.0[6 * steps..7 * steps]);
            for (rows, shared) in [(3, 1 << 15), (n, 4 * m - 1)] {
                assert_eq!(every_schedule(|engine| run(engine, with_gram, rows, shared)), want, "{rule:?} {rows} {shared}");
            }
        }
    }
}

#[test]
fn inner_products_of_atoms_are_the_cpu_s() {
    let (m, d) = (37, 12);
    let atoms = tensor(&unit(3, m, d), (m, d));
    let got = every_schedule(|engine| {
        let gram = new_gram(&atoms).unwrap().unwrap();
        seam::fill_gram(engine, &atoms, &gram).unwrap();
        gram.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    });
    assert_close("gram", &got, &gram_of(&atoms).flatten_all().unwrap().to_vec1::<f32>().unwrap(), 1e-6);
    let half = atoms.to_dtype(candle_core::DType::BF16).unwrap();
    let refused = every_schedule(|engine| seam::pursuit(engine, &atoms, &half, None, &RULE).is_err());
    assert!(refused, "another dtype");
}

#[test]
fn orthogonal_paths_are_those_of_the_cpu() {
    for (n, d, m, steps) in [(6, 24, 200, 12), (4, 7, 21, 9), (2, 40, 300, 36)] {
        // A row of zeroes, one that is an atom, one that is NaN; an atom that comes twice, and one of zeroes.
        let (mut x, mut atoms) = (normals(1, n * d, 1.0), unit(2, m, d));
        atoms.copy_within(3 * d..4 * d, 11 * d);
        atoms[5 * d..6 * d].fill(0.0);
        x[..d].copy_from_slice(&atoms[17 * d..18 * d]);
        if n > 3 {
            x[d..2 * d].fill(0.0);
            x[2 * d] = f32::NAN;
        }
        let (x, atoms) = (tensor(&x, (n, d)), tensor(&atoms, (m, d)));
        for pick in PICKS {
            for (tolerance, relative) in [(0.0, false), (0.3, true)] {
                let rule = PursuitRule { steps, pick, tolerance, relative, stop_on_repeat: true };
                let got = every_schedule(|engine| bits(&seam::orthogonal_pursuit(engine, &x, &atoms, &rule).unwrap()));
                let want = bits(&orthogonal_pursuit(&x, &atoms, &rule).unwrap());
                assert_eq!(got.0, want.0, "{rule:?}");
                for (got, want) in [(&got.1, &want.1), (&got.2, &want.2)] {
                    for (g, w) in floats(got).into_iter().zip(floats(want)) {
                        assert!((g - w).abs() < 3e-6 || (g.is_nan() && w.is_nan()), "{rule:?}: {g} for {w}");
                    }
                }
            }
        }
        assert_eq!(orthogonal_room(5, 4), 5);
        let apart = every_schedule(|engine| {
            let to = bits(&seam::orthogonal_pursuit(engine, &x, &atoms, &RULE).unwrap());
            let path = PursuitPath {
                indices: tensor(&vec![0.0; n * 8], (n, 8)).to_dtype(candle_core::DType::U32).unwrap(),
                values: tensor(&vec![0.0; n * 8], (n, 8)),
                residual: tensor(&vec![0.0; n * d], (n, d)),
            };
            let at = |t: &Tensor| engine.address(t).unwrap();
            let of = Atoms { at: at(&atoms), gram: None, m, d };
            let addresses = Path { indices: at(&path.indices), values: at(&path.values), residual: at(&path.residual) };
            pursue_orthogonally(engine, at(&x), n, &of, &RULE, &addresses, 3).unwrap();
            bits(&path) == to
        });
        assert!(apart, "blocks of rows change no bit");
    }
}
