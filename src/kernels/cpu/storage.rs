//! Reaching the memory of CPU tensors: read guards, and several tensors mutably at once.
//!
//! candle hands out mutable storage only inside an in-place operation, one tensor at a time; the recursion below nests such
//! operations, so that one closure sees all of them without any unsafe code.

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor, WithDType};

use crate::error::Result;

/// Calls `f` with the elements of a contiguous CPU tensor.
pub fn with_slice<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else { return Err(misplaced("a CPU tensor", layout)) };
    let Some((start, end)) = layout.contiguous_offsets() else { return Err(misplaced("a contiguous tensor", layout)) };
    Ok(f(&cpu.as_slice::<T>()?[start..end]))
}

/// Calls `f` with the elements of several contiguous CPU tensors.
pub fn with_slices<T: WithDType, R>(tensors: &[&Tensor], f: impl FnOnce(&[&[T]]) -> R) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        let (Storage::Cpu(cpu), Some((start, end))) = (&**storage, layout.contiguous_offsets()) else {
            return Err(misplaced("contiguous CPU tensors", layout));
        };
        slices.push(&cpu.as_slice::<T>()?[start..end]);
    }
    Ok(f(&slices))
}

/// Calls `f` with the f32 elements of contiguous CPU tensors, all mutable. The tensors must be distinct.
pub fn with_slices_mut(tensors: &[&Tensor], f: &mut dyn FnMut(&mut [&mut [f32]])) -> Result<()> {
    nest(tensors, Vec::new(), f)
}

/// See [`crate::kernels::overwrite`].
pub fn overwrite(tensor: &Tensor, data: &[f32]) -> Result<()> {
    with_slices_mut(&[tensor], &mut |slices| slices[0].copy_from_slice(data))
}

fn nest(rest: &[&Tensor], mut taken: Vec<&mut [f32]>, f: &mut dyn FnMut(&mut [&mut [f32]])) -> Result<()> {
    let Some((first, rest)) = rest.split_first() else {
        f(&mut taken);
        return Ok(());
    };
    let op = Take { taken: RefCell::new(taken), rest, f: Cell::new(Some(f)) };
    Ok(first.inplace_op1(&op)?)
}

/// What sees all slices at once.
type Visit<'f> = &'f mut dyn FnMut(&mut [&mut [f32]]);

struct Take<'t, 'r, 'f> {
    taken: RefCell<Vec<&'t mut [f32]>>,
    rest: &'r [&'r Tensor],
    f: Cell<Option<Visit<'f>>>,
}

impl InplaceOp1 for Take<'_, '_, '_> {
    fn name(&self) -> &'static str {
        "lapidary-with-slices-mut"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("expected a contiguous tensor, got {layout:?}") };
        let CpuStorage::F32(all) = storage else { candle_core::bail!("expected an f32 tensor") };
        let mut taken: Vec<&mut [f32]> = self.taken.take();
        taken.push(&mut all[start..end]);
        let f = self.f.take().expect("candle calls an in-place operation once");
        nest(self.rest, taken, f).map_err(candle_core::Error::wrap)
    }
}

fn misplaced(expected: &str, layout: &Layout) -> crate::error::Error {
    candle_core::Error::Msg(format!("expected {expected}, got {layout:?}")).into()
}
