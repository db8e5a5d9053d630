//! What the launchers' simulated tests share: data to the device and back, and every schedule of the simulator.

use super::super::columns::RowCodes;
use super::super::engine::{Buffer, Engine};
use crate::codes::{Codes, PAD};
use crate::rng::Rng;

/// The same from all schedules, bit for bit.
pub fn every_schedule<T: PartialEq + std::fmt::Debug>(f: impl Fn(&dyn Engine) -> T) -> T {
    let mut found = super::schedules().map(|engine| f(&engine));
    let first = found.next().unwrap();
    for (i, other) in found.enumerate() {
        assert!(other == first, "schedule {} leads to another result", i + 1);
    }
    first
}

/// Numbers that cross over.
pub trait Plain: Copy {
    fn bytes(self) -> Vec<u8>;
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty),*) => {
        $(impl Plain for $t {
            fn bytes(self) -> Vec<u8> {
                self.to_ne_bytes().to_vec()
            }
            fn of(bytes: &[u8]) -> Self {
                <$t>::from_ne_bytes(bytes.try_into().unwrap())
            }
        })*
    };
}

plain!(u16, u32, u64, f32, f64);

/// A buffer that holds `data`.
pub fn put<T: Plain>(engine: &dyn Engine, data: &[T]) -> Buffer {
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.bytes()).collect();
    let buffer = engine.alloc(bytes.len().max(1)).unwrap();
    engine.upload(&bytes, &buffer).unwrap();
    buffer
}

/// The first `n` numbers of a buffer.
pub fn get<T: Plain>(engine: &dyn Engine, buffer: &Buffer, n: usize) -> Vec<T> {
    let size = size_of::<T>();
    let mut bytes = vec![0; n * size];
    engine.download(buffer, &mut bytes).unwrap();
    bytes.chunks_exact(size).map(T::of).collect()
}

/// As bf16, and what that is.
pub fn rounded(data: &[f32]) -> (Vec<u16>, Vec<f32>) {
    let half: Vec<half::bf16> = data.iter().map(|&v| half::bf16::from_f32(v)).collect();
    (half.iter().map(|h| h.to_bits()).collect(), half.iter().map(|h| h.to_f32()).collect())
}

pub fn normals(seed: u64, n: usize, scale: f64) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "test", 0);
    (0..n).map(|_| (rng.normal() * scale) as f32).collect()
}

/// Codes of `n` rows with up to `k` of `d_sae` latents each; latent 0 is in all rows with `dense`. Every seventh row is empty.
pub fn codes(seed: u64, n: usize, k: usize, d_sae: usize, dense: bool) -> Codes {
    let mut rng = Rng::stream(seed, "codes", 0);
    let mut codes = Codes::new(d_sae);
    for r in 0..n {
        let mut row = std::collections::BTreeMap::new();
        let want = if r % 7 == 6 { 0 } else { rng.below(k as u64 + 1) as usize };
        for _ in 0..want {
            // Low latents are met more often.
            let u = rng.uniform();
            row.insert((u * u * d_sae as f64) as u32, 0.1 + rng.uniform() as f32);
        }
        if dense && row.len() < k {
            row.insert(0, 0.1 + rng.uniform() as f32);
        }
        let mut row: Vec<(u32, f32)> = row.into_iter().collect();
        row.sort_by(|a, b| b.1.total_cmp(&a.1));
        codes.push_row(row.into_iter());
    }
    codes
}

/// Codes on the device.
pub struct OnDevice {
    pub codes: RowCodes,
    _held: Vec<Buffer>,
}

/// As rows padded to `k`.
pub fn padded(engine: &dyn Engine, codes: &Codes, k: usize) -> OnDevice {
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    for r in 0..codes.n_rows() {
        let (of, at) = codes.row(r);
        indices.extend(of.iter().copied().chain(std::iter::repeat(PAD)).take(k));
        values.extend(at.iter().copied().chain(std::iter::repeat(0.0)).take(k));
    }
    let held = vec![put(engine, &indices), put(engine, &values)];
    OnDevice { codes: RowCodes::padded(codes.n_rows(), k, held[0].address, held[1].address), _held: held }
}

/// As rows of any length, with room for more.
pub fn ragged(engine: &dyn Engine, codes: &Codes) -> OnDevice {
    let mut starts = vec![0u32];
    for r in 0..codes.n_rows() {
        starts.push(starts[r] + codes.row(r).0.len() as u32);
    }
    let capacity = codes.indices.len() + 13;
    let (mut indices, mut values) = (codes.indices.clone(), codes.values.clone());
    indices.resize(capacity, 0);
    values.resize(capacity, f32::NAN);
    let held = vec![put(engine, &starts), put(engine, &indices), put(engine, &values)];
    OnDevice { codes: RowCodes::ragged(codes.n_rows(), capacity, held[0].address, held[1].address, held[2].address), _held: held }
}

/// Close, relative to the largest.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-30f32, |a, v| a.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}]: {g} for {w} (largest {scale})");
    }
}
