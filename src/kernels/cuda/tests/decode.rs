//! Reconstructions, against the CPU's.

use super::super::decode::{decode, nested, suffix_sums, Base, Decoded};
use super::super::reduce::Matrix;
use super::super::rows::Kind;
use super::trial::{assert_close, codes, every_schedule, get, normals, padded, put, ragged, rounded};
use crate::codes::Codes;
use crate::kernels::{decode_codes, decode_codes_onto};
use candle_core::{Device, Tensor};

fn tensor(data: &[f32], n: usize) -> Tensor {
    Tensor::from_vec(data.to_vec(), (n, data.len() / n), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The same codes, latents in `from..to` alone.
fn group(codes: &Codes, from: usize, to: usize) -> Codes {
    let mut part = Codes::new(codes.d_sae);
    for r in 0..codes.n_rows() {
        let (indices, values) = codes.row(r);
        part.push_row(indices.iter().copied().zip(values.iter().copied()).filter(|(j, _)| (from..to).contains(&(*j as usize))));
    }
    part
}

#[test]
fn errors_are_those_of_the_cpu() {
    let (n, k, d_sae) = (11, 37, 200);
    for d in [1, 5, 32, 64, 100, 130, 264] {
        let codes = codes(d as u64, n, k, d_sae, true);
        let base = normals(1, n * d, 1.0);
        for kind in [Kind::F32, Kind::Bf16] {
            let (half, exact) = rounded(&normals(2, d_sae * d, 0.3));
            let (want, square) = decode_codes_onto(&codes, &tensor(&exact, d_sae), &tensor(&base, n), -1.0).unwrap();
            for rows_of_any_length in [false, true] {
                let (full, shadow, squares) = every_schedule(|engine| {
                    let on = if rows_of_any_length { ragged(engine, &codes) } else { padded(engine, &codes, k) };
                    let w = if kind == Kind::F32 { put(engine, &exact) } else { put(engine, &half) };
                    let base = put(engine, &base);
                    let out = [put(engine, &vec![0f32; n * d]), put(engine, &vec![0u16; n * d]), put(engine, &vec![0f64; n])];
                    let w = Matrix { at: w.address, kind, n: d_sae, d };
                    let to = Decoded { full: out[0].address, half: out[1].address, squares: out[2].address };
                    decode(engine, &w, (Base::Rows(base.address), -1.0), &on.codes, 0..d_sae, &to).unwrap();
                    (get::<f32>(engine, &out[0], n * d), get::<u16>(engine, &out[1], n * d), get::<f64>(engine, &out[2], n))
                });
                assert_close("error", &full, &flat(&want), 1e-6);
                assert_eq!(shadow, rounded(&full).0);
                let sum: f64 = squares.iter().sum();
                assert!((sum - square).abs() < 1e-5 * square, "{sum} {square}");
            }
        }
    }
}

#[test]
fn a_bias_serves_all_rows_and_indices_beyond_the_dictionary_are_skipped() {
    let (n, k, d_sae, d) = (6, 5, 20, 12);
    let (codes, w, b) = (codes(3, n, k, d_sae, false), normals(1, d_sae * d, 1.0), normals(2, d, 1.0));
    let bias = Tensor::from_vec(b.clone(), d, &Device::Cpu).unwrap();
    let want = decode_codes(&codes, &tensor(&w, d_sae), Some(&bias)).unwrap();
    let below = decode_codes(&group(&codes, 0, 9), &tensor(&w, d_sae), None).unwrap();
    let (all, part) = every_schedule(|engine| {
        let (on, w, b, out) = (padded(engine, &codes, k), put(engine, &w), put(engine, &b), put(engine, &vec![0f32; n * d]));
        let to = Decoded { full: out.address, ..Decoded::default() };
        let w = Matrix { at: w.address, kind: Kind::F32, n: d_sae, d };
        decode(engine, &w, (Base::Shared(b.address), 1.0), &on.codes, 0..usize::MAX, &to).unwrap();
        let all = get::<f32>(engine, &out, n * d);
        decode(engine, &Matrix { n: 9, ..w }, (Base::Nothing, 1.0), &on.codes, 0..usize::MAX, &to).unwrap();
        (all, get::<f32>(engine, &out, n * d))
    });
    assert_close("all", &all, &flat(&want), 1e-6);
    assert_close("part", &part, &flat(&below), 1e-6);
}

#[test]
fn errors_after_prefixes_come_one_from_the_other() {
    let (n, k, d_sae, d) = (9, 12, 64, 20);
    let ends = [4, 16, 17, 64];
    let (codes, w, x) = (codes(5, n, k, d_sae, true), normals(1, d_sae * d, 1.0), normals(2, n * d, 1.0));
    let (errors, squares, sums, half) = every_schedule(|engine| {
        let (on, w, x) = (ragged(engine, &codes), put(engine, &w), put(engine, &x));
        let p = ends.len();
        let out = [put(engine, &vec![0f32; p * n * d]), put(engine, &vec![0f64; p * n]), put(engine, &vec![0u16; p * n * d])];
        nested(
            engine,
            &Matrix { at: w.address, kind: Kind::F32, n: d_sae, d },
            x.address,
            &on.codes,
            &ends,
            out[0].address,
            out[1].address,
        )
        .unwrap();
        let errors = get::<f32>(engine, &out[0], p * n * d);
        suffix_sums(engine, out[0].address, p, n * d, out[2].address).unwrap();
        suffix_sums(engine, out[0].address, p, n * d, 0).unwrap();
        let sums = get::<f32>(engine, &out[0], p * n * d);
        (errors, get::<f64>(engine, &out[1], p * n), sums, get::<u16>(engine, &out[2], p * n * d))
    });
    let mut want = (tensor(&x, n), 0.0);
    let (mut sign, mut from) = (-1.0, 0);
    for (p, &to) in ends.iter().enumerate() {
        want = decode_codes_onto(&group(&codes, from, to), &tensor(&w, d_sae), &want.0, sign).unwrap();
        (sign, from) = (1.0, to);
        assert_close("error", &errors[p * n * d..(p + 1) * n * d], &flat(&want.0), 1e-6);
        let square: f64 = squares[p * n..(p + 1) * n].iter().sum();
        assert!((square - want.1).abs() < 1e-5 * want.1);
    }
    for i in 0..n * d {
        let mut sum = 0.0;
        for p in (0..ends.len()).rev() {
            sum += errors[p * n * d + i];
            assert_eq!(sums[p * n * d + i], sum);
        }
    }
    assert_eq!(half, rounded(&sums).0);
}
