//! What runs our kernels: a GPU through CUDA, or the simulator on this CPU. The code that plans launches is written once, against this
//! trait. Not for: any operation, nor for anything that a user of the library sees.

use std::any::Any;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// An address on the device; 0 is null.
    Ptr(u64),
    /// A number.
    U32(u32),
    /// A number.
    I32(i32),
    /// A number.
    U64(u64),
    /// A number.
    F32(f32),
    /// A tensor map of the copy engine, by value.
    Map([u64; 16]),
}

macro_rules! arg {
    ($($from:ty => $case:ident),*) => {
        $(impl From<$from> for Arg {
            fn from(value: $from) -> Self {
                Self::$case(value)
            }
        })*
    };
}

arg!(u32 => U32, i32 => I32, u64 => U64, f32 => F32);

impl From<&Buffer> for Arg {
    fn from(buffer: &Buffer) -> Self {
        Self::Ptr(buffer.address)
    }
}

/// No buffer.
pub const NULL: Arg = Arg::Ptr(0);

/// Memory on the device, freed when dropped.
pub struct Buffer {
    /// Where it is.
    pub address: u64,
    /// How long, in bytes.
    pub bytes: usize,
    /// What frees it: held, and never looked at.
    #[allow(dead_code)]
    pub owner: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks, x and y.
    pub blocks: [u32; 2],
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

impl Grid {
    /// Blocks in one line, without dynamic shared memory.
    pub fn line(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks.max(1) as u32, 1], threads, shared: 0 }
    }

    /// One warp per item, eight to a block.
    pub fn warps(items: usize) -> Self {
        Self::line(items.div_ceil(8), 256)
    }

    /// One thread per item.
    pub fn threads(items: usize) -> Self {
        Self::line(items.div_ceil(256), 256)
    }

    /// With dynamic shared memory.
    pub fn with_shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }
}

/// A matrix of bf16 as the copy engine reads it: in boxes of 64 columns, swizzled by 128 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileMap {
    /// Of row 0; a multiple of 16.
    pub address: u64,
    /// Columns.
    pub columns: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes from row to row; a multiple of 16.
    pub stride: u64,
    /// Columns and rows of a box.
    pub box_: [u32; 2],
}

/// How the operands of a matrix product are read; results and sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// Two-byte bf16.
    Bf16,
    /// f32, multiplied as tf32.
    Tf32,
    /// f32.
    F32,
}

/// An engine that several hold.
pub type Shared = Arc<dyn Engine + Send + Sync>;

/// A device. Work goes in order, on one stream; only `download` waits for it.
pub trait Engine {
    /// Memory whose contents are anything.
    fn alloc(&self, bytes: usize) -> Result<Buffer>;

    /// Zeroes.
    fn zero(&self, buffer: &Buffer) -> Result<()>;

    /// Copies to the start of `to`.
    fn upload(&self, from: &[u8], to: &Buffer) -> Result<()>;

    /// Waits for all work so far, then copies from the start of `from`.
    fn download(&self, from: &Buffer, to: &mut [u8]) -> Result<()>;

    /// Copies `bytes` from an address on the device to the start of `to`.
    fn copy(&self, from: u64, to: &Buffer, bytes: usize) -> Result<()>;

    /// Starts a kernel of `kernels/`.
    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()>;

    /// `c[n, ldc]` (f32, its first m columns) `= a[n, d] b[m, d]^T`, all row-major.
    #[allow(clippy::too_many_arguments)]
    fn product(&self, operands: Operands, a: u64, b: u64, n: usize, m: usize, d: usize, c: u64, ldc: usize) -> Result<()>;

    /// Where the elements of a contiguous tensor on this device begin. The tensor must outlive the work that uses it.
    fn address(&self, tensor: &Tensor) -> Result<u64>;

    /// What a kernel takes to read boxes of a matrix: cuTensorMapEncodeTiled's words, or the simulator's own.
    fn map(&self, tile: &TileMap) -> Result<[u64; 16]>;

    /// Compute capability: major * 10 + minor. The simulator says 0.
    fn capability(&self) -> u32;

    /// Multiprocessors.
    fn multiprocessors(&self) -> usize;
}
