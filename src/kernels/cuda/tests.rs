//! Kernels in the simulator, each under several orders of its threads; and kernels with planted faults, which it must find.

// Clippy sees a test module only in a plain `cfg(test)`.
#![allow(clippy::unwrap_used)]

mod cast;
mod columns;
mod decode;
mod encode;
mod faults;
mod layouts;
mod pursuit;
mod reduce;
mod trial;
mod update;

use super::engine::{Buffer, Engine};
use super::simulator::Simulator;

/// Ascending, descending, and shuffled twice.
pub(super) fn schedules() -> impl Iterator<Item = Simulator> {
    (0..4).map(Simulator::new)
}

/// A buffer that holds `values`.
pub(super) fn buffer<T: Copy>(engine: &impl Engine, values: &[T]) -> Buffer {
    // SAFETY: numbers, read as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    let buffer = engine.alloc(bytes.len()).unwrap();
    engine.upload(bytes, &buffer).unwrap();
    buffer
}

/// What a buffer holds.
pub(super) fn values<T: Copy + Default>(engine: &impl Engine, buffer: &Buffer) -> Vec<T> {
    let mut values = vec![T::default(); buffer.bytes / size_of::<T>()];
    // SAFETY: numbers, any bits of which are one.
    let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(&values[..])) };
    engine.download(buffer, bytes).unwrap();
    values
}
