//! kernels/sim/layouts.cu: fragments, swizzles and asynchronous copies against plain products; and what forgets to wait.

use half::bf16;

use super::{buffer, schedules, values};
use crate::kernels::cuda::engine::{Arg, Buffer, Engine, Grid};
use crate::kernels::cuda::simulator::Simulator;
use crate::rng::Rng;

fn matrix(n: usize, seed: u64) -> Vec<bf16> {
    let mut rng = Rng::stream(seed, "layouts", 0);
    (0..n).map(|_| bf16::from_f64(rng.normal())).collect()
}

/// `a [n, d] b [m, d]^T`.
fn product(a: &[bf16], b: &[bf16], d: usize) -> Vec<f64> {
    let dot = |x: &[bf16], y: &[bf16]| x.iter().zip(y).map(|(x, y)| x.to_f64() * y.to_f64()).sum();
    a.chunks(d).flat_map(|x| b.chunks(d).map(move |y| dot(x, y))).collect()
}

#[test]
fn fragments_of_a_warp() {
    let (a, b) = (matrix(16 * 16, 1), matrix(8 * 16, 2));
    let c: Vec<f32> = (0..128).map(|i| i as f32).collect();
    for engine in schedules() {
        let (a_at, b_at, c_at) = (buffer(&engine, &a), buffer(&engine, &b), buffer(&engine, &c));
        engine.launch("layout_mma", Grid::line(1, 32), &[Arg::from(&a_at), Arg::from(&b_at), Arg::from(&c_at)]).unwrap();
        for ((got, exact), was) in values::<f32>(&engine, &c_at).iter().zip(product(&a, &b, 16)).zip(&c) {
            assert!((f64::from(*got) - exact - f64::from(*was)).abs() < 1e-4, "{got} is {exact} + {was}");
        }
    }
}

/// A map of `[rows, d]` bf16 for boxes of 64 columns and `boxed` rows, as the simulator reads one.
fn map(at: &Buffer, rows: usize, d: usize, boxed: u64) -> Arg {
    let mut words = [0; 16];
    words[..6].copy_from_slice(&[at.address, d as u64, rows as u64, 2 * d as u64, 64, boxed]);
    Arg::Map(words)
}

/// Two tiles of 64 x 64, two of 256 x 64, and four barriers.
const SHARED: usize = 2 * 64 * 128 + 2 * 256 * 128 + 1024;

/// What `kernel` makes of `a [n, d]` and `b [m, d]`: the largest error.
fn error(engine: &Simulator, kernel: &'static str, n: usize, m: usize, d: usize) -> crate::error::Result<f64> {
    let (a, b) = (matrix(n * d, 3), matrix(m * d, 4));
    let (a_at, b_at, c_at) = (buffer(engine, &a), buffer(engine, &b), engine.alloc(64 * 256 * 4)?);
    let args = [map(&a_at, n, d, 64), map(&b_at, m, d, 256), Arg::U32(d as u32), Arg::from(&c_at)];
    engine.launch(kernel, Grid::line(1, 160).with_shared(SHARED), &args)?;
    let (got, exact) = (values::<f32>(engine, &c_at), product(&a, &b, d));
    let place = |i: usize| if i / 256 < n && i % 256 < m { exact[i / 256 * m + i % 256] } else { 0.0 };
    // NaN, which poison may become, is an error like another.
    Ok(got.iter().enumerate().map(|(i, v)| (f64::from(*v) - place(i)).abs()).fold(0.0, |a, e| if e <= a { a } else { e }))
}

#[test]
fn tiles_of_a_warpgroup() {
    for (n, m, d) in [(64, 256, 64), (64, 256, 320), (33, 100, 72)] {
        for engine in schedules() {
            let error = error(&engine, "layout_wgmma", n, m, d).unwrap();
            assert!(error < 1e-4, "{n} x {m} x {d}: {error}");
        }
    }
}

/// In how many orders is there an error, told or computed?
fn found(kernel: &'static str) -> usize {
    schedules().filter(|engine| !error(engine, kernel, 64, 256, 320).is_ok_and(|e| e < 1e-4)).count()
}

#[test]
fn missing_waits_of_a_ring_show() {
    for kernel in ["fault_never_full", "fault_never_empty", "fault_products_not_done"] {
        assert!(found(kernel) > 0, "{kernel}");
    }
}

#[test]
fn missing_waits_of_copies_show() {
    let from: Vec<u32> = (0..512).map(|i| 3 * i + 1).collect();
    let mut wrong = [0; 2];
    for engine in schedules() {
        let (from_at, to) = (buffer(&engine, &from), engine.alloc(512 * 4).unwrap());
        let told = engine.launch("fault_copy_without_wait", Grid::line(1, 32), &[Arg::from(&from_at), Arg::from(&to)]).is_err();
        wrong[0] += usize::from(told || values::<u32>(&engine, &to)[..128] != from[..128]);
        let args = [Arg::from(&from_at), Arg::from(&to), Arg::U32(4)];
        let told = engine.launch("fault_buffer_reused", Grid::line(1, 128), &args).is_err();
        let right: Vec<u32> = (0..512).map(|i| from[i / 128 * 128 + 127 - i % 128]).collect();
        wrong[1] += usize::from(told || values::<u32>(&engine, &to) != right);
    }
    assert!(wrong[0] > 0 && wrong[1] > 0, "{wrong:?}");
}

#[test]
fn barriers_that_nobody_serves() {
    for engine in schedules() {
        let to = buffer(&engine, &[0u32; 32]);
        let say = |kernel| engine.launch(kernel, Grid::line(1, 32), &[Arg::from(&to)]).unwrap_err().to_string();
        assert!(say("fault_nobody_arrives").contains("DEADLOCK: no thread can run: threads 0-31 wait in mbarrier.try_wait"));
        assert!(say("fault_no_barrier").contains("was not initialised"));
    }
}
