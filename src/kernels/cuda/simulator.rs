//! The kernels on this CPU, thread by thread (kernels/sim): what they compute can be tested without a GPU. Not for: their speed, nor anything
//! that depends on the memory model (kernels/README.md).

use std::alloc::{alloc, dealloc, Layout};
use std::ffi::{c_char, c_int, c_void, CStr, CString};

use candle_core::{CpuStorage, Storage, Tensor};

use super::engine::{Arg, Buffer, Engine, Grid, Operands, TileMap};
use crate::error::{Error, Result};

extern "C" {
    fn lapidary_sim_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        args: *const *const c_void,
        n_args: usize,
        schedule: u32,
    ) -> c_int;
    fn lapidary_sim_error() -> *const c_char;
    fn lapidary_sim_parameters(kernel: *const c_char) -> *const c_char;
    fn lapidary_sim_buffer(at: *const c_void, bytes: usize, alive: c_int);
}

/// What fresh memory holds, as on a GPU: nothing to rely on.
const POISON: u8 = 0xcb;

/// An engine of fibres.
#[derive(Debug, Clone, Copy, Default)]
pub struct Simulator {
    /// The order in which threads and blocks run: 0 ascending, 1 descending, else a seed.
    pub schedule: u32,
}

/// Exactly as long as asked for, so that a sanitizer sees overruns; aligned as on a GPU.
struct Memory {
    at: *mut u8,
    layout: Layout,
}

// SAFETY: only the simulator, which runs one launch at a time, and `upload` and `download` look inside.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `alloc`.
        unsafe {
            lapidary_sim_buffer(self.at.cast(), 0, 0);
            dealloc(self.at, self.layout)
        }
    }
}

fn failed(problem: impl Into<String>) -> Error {
    Error::request(problem, "this is a fault of the kernel or of its launch (kernels/README.md)")
}

fn name(kernel: &str) -> CString {
    CString::new(kernel).expect("kernels' names hold no NUL")
}

/// Does the argument fit a parameter of this letter (`Letter` in kernels/sim/launch.hpp)?
fn fits(arg: &Arg, letter: u8) -> bool {
    matches!(
        (arg, letter),
        (Arg::Ptr(_), b'p') | (Arg::U32(_), b'u') | (Arg::I32(_), b'i') | (Arg::U64(_), b'U') | (Arg::F32(_), b'f') | (Arg::Map(_), b'm')
    )
}

impl Simulator {
    /// With another number of the order.
    pub fn new(schedule: u32) -> Self {
        Self { schedule }
    }

    fn check(kernel: &str, args: &[Arg]) -> Result<()> {
        let c_name = name(kernel);
        // SAFETY: a C string; the answer is null or a static one.
        let letters = unsafe {
            let letters = lapidary_sim_parameters(c_name.as_ptr());
            if letters.is_null() {
                return Err(failed(format!("there is no kernel `{kernel}`")));
            }
            CStr::from_ptr(letters).to_bytes()
        };
        if letters.len() != args.len() {
            return Err(failed(format!("`{kernel}` has {} parameters, and {} arguments came", letters.len(), args.len())));
        }
        match args.iter().zip(letters).position(|(arg, &letter)| !fits(arg, letter)) {
            Some(i) => Err(failed(format!("argument {i} of `{kernel}` is {:?}, its parameter of kind `{}`", args[i], letters[i] as char))),
            None => Ok(()),
        }
    }
}

impl Engine for Simulator {
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let layout = Layout::from_size_align(bytes.max(1), 256).map_err(|e| failed(format!("a buffer of {bytes} bytes: {e}")))?;
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc(layout) };
        if at.is_null() {
            return Err(failed(format!("no memory for a buffer of {bytes} bytes")));
        }
        // SAFETY: just allocated, that long.
        unsafe {
            at.write_bytes(POISON, bytes);
            lapidary_sim_buffer(at.cast(), bytes, 1);
        }
        Ok(Buffer { address: at as u64, bytes, owner: Box::new(Memory { at, layout }) })
    }

    fn zero(&self, buffer: &Buffer) -> Result<()> {
        // SAFETY: the buffer is alive and that long, and no launch is under way: launches are synchronous.
        unsafe { (buffer.address as *mut u8).write_bytes(0, buffer.bytes) };
        Ok(())
    }

    fn upload(&self, from: &[u8], to: &Buffer) -> Result<()> {
        assert!(from.len() <= to.bytes, "{} bytes for a buffer of {}", from.len(), to.bytes);
        // SAFETY: as above; checked to fit.
        unsafe { (to.address as *mut u8).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn download(&self, from: &Buffer, to: &mut [u8]) -> Result<()> {
        assert!(to.len() <= from.bytes, "{} bytes of a buffer of {}", to.len(), from.bytes);
        // SAFETY: as above; checked to fit.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from.address as *const u8, to.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: &Buffer, bytes: usize) -> Result<()> {
        assert!(bytes <= to.bytes, "{bytes} bytes for a buffer of {}", to.bytes);
        // SAFETY: the caller vouches for `from`; checked to fit.
        unsafe { (to.address as *mut u8).copy_from_nonoverlapping(from as *const u8, bytes) };
        Ok(())
    }

    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        Self::check(kernel, args)?;
        let args: Vec<*const c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::Ptr(v) | Arg::U64(v) => std::ptr::from_ref(v).cast(),
                Arg::U32(v) => std::ptr::from_ref(v).cast(),
                Arg::I32(v) => std::ptr::from_ref(v).cast(),
                Arg::F32(v) => std::ptr::from_ref(v).cast(),
                Arg::Map(v) => std::ptr::from_ref(v).cast(),
            })
            .collect();
        let (blocks, threads, c_name) = ([grid.blocks[0], grid.blocks[1], 1], [grid.threads, 1, 1], name(kernel));
        // SAFETY: arguments are alive and of the parameters' types (checked); what their addresses hold is the caller's promise, as on a GPU.
        let answer = unsafe {
            lapidary_sim_launch(c_name.as_ptr(), blocks.as_ptr(), threads.as_ptr(), grid.shared, args.as_ptr(), args.len(), self.schedule)
        };
        if answer == 0 {
            return Ok(());
        }
        // SAFETY: a C string that lives until this thread's next launch.
        Err(failed(unsafe { CStr::from_ptr(lapidary_sim_error()) }.to_string_lossy()))
    }

    fn product(&self, operands: Operands, a: u64, b: u64, n: usize, m: usize, d: usize, c: u64, ldc: usize) -> Result<()> {
        let (a, b) = (operand(operands, a, n * d), operand(operands, b, m * d));
        for i in 0..n {
            for j in 0..m {
                let sum: f32 = a[i * d..][..d].iter().zip(&b[j * d..][..d]).map(|(x, y)| x * y).sum();
                // SAFETY: inside c [n, ldc], by the caller's promise.
                unsafe { (c as *mut f32).add(i * ldc + j).write(sum) };
            }
        }
        Ok(())
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(cpu), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(failed(format!("expected a contiguous CPU tensor, got {layout:?}")));
        };
        let (base, size) = match cpu {
            CpuStorage::F32(v) => (v.as_ptr() as u64, 4),
            CpuStorage::U32(v) => (v.as_ptr() as u64, 4),
            CpuStorage::BF16(v) => (v.as_ptr() as u64, 2),
            CpuStorage::F16(v) => (v.as_ptr() as u64, 2),
            CpuStorage::F64(v) => (v.as_ptr() as u64, 8),
            CpuStorage::I64(v) => (v.as_ptr() as u64, 8),
            CpuStorage::U8(v) => (v.as_ptr() as u64, 1),
            _ => return Err(failed(format!("kernels take no {:?}", tensor.dtype()))),
        };
        let address = base + (start * size) as u64;
        // SAFETY: the range is only remembered.
        unsafe { lapidary_sim_buffer(address as *const c_void, tensor.elem_count() * size, 1) };
        Ok(address)
    }

    fn map(&self, tile: &TileMap) -> Result<[u64; 16]> {
        let mut words = [0; 16];
        let [columns, rows] = tile.box_.map(u64::from);
        words[..6].copy_from_slice(&[tile.address, tile.columns, tile.rows, tile.stride, columns, rows]);
        Ok(words)
    }

    fn capability(&self) -> u32 {
        0
    }

    fn multiprocessors(&self) -> usize {
        4
    }
}

/// `len` operands as the product reads them.
fn operand(operands: Operands, at: u64, len: usize) -> Vec<f32> {
    // SAFETY: that many elements, by the caller's promise.
    match operands {
        Operands::Bf16 => unsafe { std::slice::from_raw_parts(at as *const half::bf16, len) }.iter().map(|v| v.to_f32()).collect(),
        Operands::Tf32 => unsafe { std::slice::from_raw_parts(at as *const f32, len) }.iter().map(|v| tf32(*v)).collect(),
        Operands::F32 => unsafe { std::slice::from_raw_parts(at as *const f32, len) }.to_vec(),
    }
}

/// Rounded to 10 bits of mantissa, to nearest; ties away from zero, as `cvt.rna.tf32` does.
fn tf32(v: f32) -> f32 {
    if v.is_finite() {
        f32::from_bits((v.to_bits() + 0x1000) & !0x1fff)
    } else {
        v
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn products_read_operands_as_stated() {
        let engine = Simulator::default();
        let (n, m, d, ldc) = (3, 2, 5, 4);
        let a = Tensor::arange(0f32, (n * d) as f32, &Device::Cpu).unwrap().affine(0.3371, -1.0).unwrap().reshape((n, d)).unwrap();
        let b = Tensor::arange(0f32, (m * d) as f32, &Device::Cpu).unwrap().affine(-0.1113, 0.7).unwrap().reshape((m, d)).unwrap();
        let exact = a.matmul(&b.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        for (operands, dtype, error) in
            [(Operands::F32, DType::F32, 1e-6), (Operands::Tf32, DType::F32, 1e-2), (Operands::Bf16, DType::BF16, 1e-1)]
        {
            let (a, b) = (a.to_dtype(dtype).unwrap(), b.to_dtype(dtype).unwrap());
            let c = engine.alloc(n * ldc * 4).unwrap();
            engine.zero(&c).unwrap();
            engine.product(operands, engine.address(&a).unwrap(), engine.address(&b).unwrap(), n, m, d, c.address, ldc).unwrap();
            let mut bytes = vec![1; n * ldc * 4];
            engine.download(&c, &mut bytes).unwrap();
            let got: Vec<f32> = bytes.chunks(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect();
            let mut worst = 0f32;
            for (i, row) in got.chunks(ldc).enumerate() {
                assert_eq!(row[m..], [0.0; 2], "what lies beyond the columns is left alone");
                worst = row.iter().zip(&exact[i]).fold(worst, |worst, (x, y)| worst.max((x - y).abs()));
            }
            assert!(worst <= error && (worst > 0.0 || operands == Operands::F32), "{operands:?}: {worst}");
        }
        assert_eq!(engine.capability(), 0);
    }

    #[test]
    fn addresses_begin_where_the_tensor_does() {
        let all = Tensor::arange(0u32, 12, &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        let engine = Simulator::default();
        let part = all.narrow(0, 2, 2).unwrap();
        assert_eq!(engine.address(&part).unwrap() - engine.address(&all).unwrap(), 24);
        assert!(engine.address(&all.t().unwrap()).is_err(), "not contiguous");
    }

    #[test]
    fn tf32_has_ten_bits() {
        assert_eq!(tf32(1.0 + 2f32.powi(-11)), 1.0 + 2f32.powi(-10));
        assert_eq!(tf32(1.0 + 2f32.powi(-12)), 1.0);
        assert!(tf32(f32::NAN).is_nan());
    }
}
