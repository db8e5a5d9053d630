use super::{buffer, schedules, values};
use crate::kernels::cuda::engine::{Arg, Engine, Grid, NULL};
use crate::rng::Rng;

fn rows(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "cast", 0);
    (0..n * d).map(|_| rng.normal() as f32).collect()
}

#[test]
fn cast_rows_rounds_and_bounds() {
    for (n, d) in [(1, 1), (3, 72), (130, 65), (9, 200)] {
        let (x, b) = (rows(n, d, 1), rows(1, d, 2));
        for engine in schedules() {
            let (x_at, b_at, bad) = (buffer(&engine, &x), buffer(&engine, &b), buffer(&engine, &[0u32]));
            let (full, half) = (engine.alloc(n * d * 4).unwrap(), engine.alloc(n * d * 2).unwrap());
            let norms = engine.alloc(n * 2 * 4).unwrap();
            let args = [
                Arg::from(&x_at),
                Arg::from(&b_at),
                Arg::U32(n as u32),
                Arg::U32(d as u32),
                Arg::from(&full),
                Arg::from(&half),
                Arg::from(&norms),
                Arg::from(&bad),
            ];
            engine.launch("cast_rows", Grid::warps(n), &args).unwrap();
            let centred: Vec<f32> = x.iter().enumerate().map(|(i, v)| v - b[i % d]).collect();
            let rounded: Vec<half::bf16> = centred.iter().map(|v| half::bf16::from_f32(*v)).collect();
            assert_eq!(values::<f32>(&engine, &full), centred);
            assert_eq!(values::<half::bf16>(&engine, &half), rounded);
            assert_eq!(values::<u32>(&engine, &bad), [0]);
            for (row, norm) in values::<f32>(&engine, &norms).chunks(2).enumerate() {
                let mut sums = [0f64; 2];
                for i in row * d..(row + 1) * d {
                    let kept = rounded[i].to_f64();
                    sums[0] += kept * kept;
                    sums[1] += (f64::from(centred[i]) - kept).powi(2);
                }
                for (got, exact) in norm.iter().zip(sums.map(f64::sqrt)) {
                    let got = f64::from(*got);
                    assert!(got >= exact && got <= exact * (1.0 + 1e-5) + 1e-30, "{got} bounds {exact}");
                }
            }
        }
    }
}

#[test]
fn cast_rows_counts_what_is_not_finite() {
    let mut x = rows(5, 40, 3);
    (x[0], x[77], x[199]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    for engine in schedules() {
        let (at, bad) = (buffer(&engine, &x), buffer(&engine, &[7u32]));
        let args = [Arg::from(&at), NULL, Arg::U32(5), Arg::U32(40), NULL, NULL, NULL, Arg::from(&bad)];
        engine.launch("cast_rows", Grid::warps(5), &args).unwrap();
        assert_eq!(values::<u32>(&engine, &bad), [10]);
    }
}
