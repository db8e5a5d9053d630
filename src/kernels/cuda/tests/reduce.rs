//! Sums, against the CPU's.

use super::super::reduce::{aux_scale, ColumnSums, Matrix, Reduce};
use super::super::rows::Kind;
use super::trial::{every_schedule, get, normals, put, rounded};
use candle_core::{Device, Tensor};

#[test]
fn sums_and_spreads_are_those_of_the_cpu() {
    for (n, d) in [(1, 1), (3, 70), (64, 32), (150, 33), (200, 129), (700, 3)] {
        let x: Vec<f32> = normals(n as u64, n * d, 1.0).iter().map(|v| v + 3.0).collect();
        let tensor = Tensor::from_vec(x.clone(), (n, d), &Device::Cpu).unwrap();
        let sums: Vec<f32> = crate::kernels::column_sums(&tensor, 0.25).unwrap().to_vec1().unwrap();
        let spread = crate::kernels::spread(&tensor).unwrap();
        let (got, of) = every_schedule(|engine| {
            let (at, reduce) = (put(engine, &x), Reduce::new(engine, n, n, d).unwrap());
            let (to, total, squares) = (put(engine, &vec![0f32; d]), put(engine, &vec![0f64; d]), put(engine, &vec![0f64; n]));
            let x = Matrix { at: at.address, kind: Kind::F32, n, d };
            reduce.columns(engine, &x, &ColumnSums { weights: 0, factor: 0.25, base: 0, total: 0, rounded: to.address }).unwrap();
            let out = put(engine, &[0f64]);
            reduce.spread(engine, &x, &total, &squares, out.address).unwrap();
            (get::<f32>(engine, &to, d), get::<f64>(engine, &out, 1)[0])
        });
        assert_eq!(got, sums);
        assert!((of - spread).abs() <= 1e-12 * spread.max(1e-9), "{of} {spread}");
    }
}

#[test]
fn weights_bases_and_bf16_enter_column_sums() {
    let (n, d) = (130, 5);
    let (half, x) = rounded(&normals(1, n * d, 1.0));
    let mut weights = normals(2, n, 1.0);
    weights[3] = 0.0;
    let base: Vec<f64> = (0..d).map(|c| c as f64).collect();
    let got = every_schedule(|engine| {
        let (at, reduce) = (put(engine, &half), Reduce::new(engine, 1, n, d).unwrap());
        let (weights, base, total) = (put(engine, &weights), put(engine, &base), put(engine, &vec![0f64; d]));
        let to = ColumnSums { weights: weights.address, factor: -1.0, base: base.address, total: total.address, rounded: 0 };
        reduce.columns(engine, &Matrix { at: at.address, kind: Kind::Bf16, n, d }, &to).unwrap();
        get::<f64>(engine, &total, d)
    });
    for (c, got) in got.iter().enumerate() {
        let want = base[c] - (0..n).map(|r| f64::from(weights[r]) * f64::from(x[r * d + c])).sum::<f64>();
        assert!((got - want).abs() < 1e-12 * n as f64, "{got} {want}");
    }
}

#[test]
fn long_sums_go_in_two_stages_and_add_up() {
    let x: Vec<f64> = (0..10_001).map(|i| f64::from(i % 97) - 48.5).collect();
    let got = every_schedule(|engine| {
        let (at, out, reduce) = (put(engine, &x), put(engine, &[1000f64]), Reduce::new(engine, x.len(), 1, 1).unwrap());
        reduce.sum(engine, at.address, x.len(), 0.5, true, out.address).unwrap();
        get::<f64>(engine, &out, 1)[0]
    });
    assert_eq!(got, 1000.0 + 0.5 * x.iter().sum::<f64>());
}

#[test]
fn aux_factors_vanish_where_nothing_is_spread() {
    for (spread, scale, loss) in [(4.0, 0.25, 1.25), (0.0, 0.0, 0.0), (f64::NAN, 0.0, 0.0)] {
        let got = every_schedule(|engine| {
            let (spread, square) = (put(engine, &[spread]), put(engine, &[10f64]));
            let (to, of) = (put(engine, &[9f32]), put(engine, &[9f64]));
            aux_scale(engine, spread.address, square.address, 0.5, to.address, of.address).unwrap();
            (get::<f32>(engine, &to, 1)[0], get::<f64>(engine, &of, 1)[0])
        });
        assert_eq!(got, (scale, loss));
    }
}
