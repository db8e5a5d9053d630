//! A GPU as an [`Engine`]: candle's stream, our fatbin, cuBLAS. Not for planning: nothing here knows what a kernel is for.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::cuda_backend::cudarc::cublas::{self, sys as blas};
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use candle_core::cuda_backend::cudarc::driver::{
    result, sys, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{DType, Device, Storage, Tensor};

use super::engine::{Arg, Buffer, Engine, Grid, Operands, TileMap};
use crate::error::{Error, Result};

/// Our kernels for the chips that `build.rs` was told of.
static FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Without more than this, a block's dynamic shared memory needs no asking for.
const PLAIN_SHARED: u32 = 48 << 10;

/// A GPU.
pub struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    capability: u32,
    multiprocessors: usize,
}

fn first_line(e: impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

/// What a driver's error means to the person who started the program.
fn failed(doing: impl Into<String>, error: &DriverError) -> Error {
    use sys::CUresult as R;
    let help = match error.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => {
            "the GPU has too little free memory: close other programs on it (nvidia-smi), or choose a smaller batch or dictionary"
        }
        R::CUDA_ERROR_NO_DEVICE | R::CUDA_ERROR_INVALID_DEVICE => "check that nvidia-smi lists it, or use --device cpu",
        R::CUDA_ERROR_NO_BINARY_FOR_GPU | R::CUDA_ERROR_INVALID_PTX | R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "this build has no kernels for the chip, or the driver is older than the toolkit that made them: build with \
             LAPIDARY_CUDA_ARCHS naming the chip, or update the driver (CUDA 13 wants 580 or newer)"
        }
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | R::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "kernel driver and libcuda differ: restart after a driver update, or take old libcuda.so files off the library path"
        }
        _ => "if it happens again with the same input it is a bug: report it with this message; --device cpu works meanwhile",
    };
    Error::Cuda { reason: format!("{}: {}", doing.into(), first_line(error)), help: help.into() }
}

fn failed_product(error: &cublas::result::CublasError) -> Error {
    let help = "cuBLAS is part of the CUDA runtime libraries: its version must be 13, and the GPU must have free memory for its workspace";
    Error::Cuda { reason: format!("a matrix product: {}", first_line(error)), help: help.into() }
}

/// The GPU that `name` (`cuda`, `cuda:1`) means.
pub fn device(name: &str) -> Result<Device> {
    let ordinal = match name.strip_prefix("cuda:") {
        None => 0,
        Some(number) => {
            number.parse().map_err(|_| Error::config("device", format!("`{name}` is no device"), "write cpu, cuda or cuda:N"))?
        }
    };
    // A stream of its own: the default one would differ from thread to thread.
    let device = Device::new_cuda_with_stream(ordinal).map_err(|e| Error::Cuda {
        reason: format!("`{name}` cannot be opened: {}", first_line(e)),
        help: "check that nvidia-smi lists it and that its driver is 580 or newer; or use --device cpu".into(),
    })?;
    engine(&device)?;
    Ok(device)
}

/// GPUs by ordinal, with candle's name for each.
type Open = Mutex<HashMap<usize, (DeviceId, Arc<Gpu>)>>;

/// The engine of a device that candle has opened; kernels are loaded once per device.
pub fn engine(device: &Device) -> Result<Arc<Gpu>> {
    static OPEN: OnceLock<Open> = OnceLock::new();
    let device = device.as_cuda_device()?;
    let ordinal = device.cuda_stream().context().ordinal();
    let mut open = OPEN.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((id, gpu)) = open.get(&ordinal) {
        if *id == device.id() {
            return Ok(gpu.clone());
        }
    }
    let stream = device.cuda_stream();
    let loading = |e: DriverError| failed("loading the kernels", &e);
    let module = stream.context().load_module(Ptx::from_binary(FATBIN.to_vec())).map_err(loading)?;
    let context = stream.context().clone();
    let (major, minor) = context.compute_capability().map_err(loading)?;
    let capability = (major * 10 + minor) as u32;
    let multiprocessors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(loading)? as usize;
    let gpu = Arc::new(Gpu { device: device.clone(), stream, module, functions: Mutex::default(), capability, multiprocessors });
    open.insert(ordinal, (device.id(), gpu.clone()));
    Ok(gpu)
}

/// Frees on the stream, after the work that uses it.
struct Owned {
    address: u64,
    stream: Arc<CudaStream>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: the address came from `malloc_async` on this stream and is freed once.
        let _ = unsafe { result::free_async(self.address, self.stream.cu_stream()) };
    }
}

impl Gpu {
    fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(|e| failed("choosing the GPU", &e))
    }

    fn function(&self, name: &'static str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).map_err(|e| failed(format!("finding the kernel {name}"), &e))?;
        functions.insert(name, function.clone());
        Ok(function)
    }

    fn fits(&self, what: &str, buffer: &Buffer, bytes: usize) -> Result<()> {
        if bytes <= buffer.bytes {
            return Ok(());
        }
        Err(Error::Cuda {
            reason: format!("{what} {bytes} bytes, of a buffer of {}", buffer.bytes),
            help: "this is a bug: report it with this message".into(),
        })
    }
}

impl Engine for Gpu {
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.bind()?;
        let stream = self.stream.clone();
        // SAFETY: contents are uninitialised, which `Engine::alloc` says.
        let address = unsafe { result::malloc_async(stream.cu_stream(), bytes.max(1)) }
            .map_err(|e| failed(format!("allocating {:.1} MiB on the GPU", bytes as f64 / 1048576.0), &e))?;
        Ok(Buffer { address, bytes, owner: Box::new(Owned { address, stream }) })
    }

    fn zero(&self, buffer: &Buffer) -> Result<()> {
        self.bind()?;
        // SAFETY: the buffer is that long.
        unsafe { result::memset_d8_async(buffer.address, 0, buffer.bytes, self.stream.cu_stream()) }
            .map_err(|e| failed("clearing memory", &e))
    }

    fn upload(&self, from: &[u8], to: &Buffer) -> Result<()> {
        self.fits("copying in", to, from.len())?;
        self.bind()?;
        // SAFETY: `to` holds as many bytes. Pageable memory is staged before the call returns, so `from` may go.
        unsafe { result::memcpy_htod_async(to.address, from, self.stream.cu_stream()) }.map_err(|e| failed("copying to the GPU", &e))
    }

    fn download(&self, from: &Buffer, to: &mut [u8]) -> Result<()> {
        self.fits("copying out", from, to.len())?;
        self.bind()?;
        // SAFETY: `from` holds as many bytes, and `to` outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(to, from.address, self.stream.cu_stream()) }.map_err(|e| failed("copying from the GPU", &e))?;
        self.stream.synchronize().map_err(|e| failed("waiting for the GPU", &e))
    }

    fn copy(&self, from: u64, to: &Buffer, bytes: usize) -> Result<()> {
        self.fits("copying", to, bytes)?;
        self.bind()?;
        // SAFETY: the caller vouches for `from`; `to` holds as many bytes.
        unsafe { result::memcpy_dtod_async(to.address, from, bytes, self.stream.cu_stream()) }.map_err(|e| failed("copying on the GPU", &e))
    }

    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        let function = self.function(kernel)?;
        let doing = |e: DriverError| failed(format!("the kernel {kernel}"), &e);
        if grid.shared > PLAIN_SHARED {
            function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, grid.shared as i32).map_err(doing)?;
        }
        let mut launch = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Ptr(v) | Arg::U64(v) => launch.arg(v),
                Arg::U32(v) => launch.arg(v),
                Arg::I32(v) => launch.arg(v),
                Arg::F32(v) => launch.arg(v),
                Arg::Map(words) => launch.arg(words),
            };
        }
        let config =
            LaunchConfig { grid_dim: (grid.blocks[0], grid.blocks[1], 1), block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared };
        // SAFETY: argument kinds and order are the kernel's, which the simulator checks for each launch that is planned in this crate.
        unsafe { launch.launch(config) }.map_err(doing)?;
        Ok(())
    }

    fn product(&self, operands: Operands, a: u64, b: u64, n: usize, m: usize, d: usize, c: u64, ldc: usize) -> Result<()> {
        self.bind()?;
        let (kind, compute) = match operands {
            Operands::Bf16 => (blas::cudaDataType_t::CUDA_R_16BF, blas::cublasComputeType_t::CUBLAS_COMPUTE_32F),
            Operands::Tf32 => (blas::cudaDataType_t::CUDA_R_32F, blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32),
            Operands::F32 => (blas::cudaDataType_t::CUDA_R_32F, blas::cublasComputeType_t::CUBLAS_COMPUTE_32F),
        };
        let (one, zero) = (1f32, 0f32);
        let pointer = |v: &f32| std::ptr::from_ref(v).cast::<c_void>();
        // cuBLAS is column-major: c^T [m, n] = b a^T, where b [m, d] row-major is its transpose.
        // SAFETY: the caller vouches for addresses and sizes.
        unsafe {
            cublas::result::gemm_ex(
                *self.device.cublas_handle().handle(),
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                m as i32,
                n as i32,
                d as i32,
                pointer(&one),
                b as *const c_void,
                kind,
                d as i32,
                a as *const c_void,
                kind,
                d as i32,
                pointer(&zero),
                c as *mut c_void,
                blas::cudaDataType_t::CUDA_R_32F,
                ldc as i32,
                compute,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| failed_product(&e))
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        use candle_core::cuda_backend::cudarc::driver::DevicePtr;
        let (storage, layout) = tensor.storage_and_layout();
        let misplaced = |what: &str| Error::from(candle_core::Error::Msg(format!("expected {what}, got {layout:?}")));
        let Storage::Cuda(storage) = &*storage else { return Err(misplaced("a tensor on the GPU")) };
        let Some((start, _)) = layout.contiguous_offsets() else { return Err(misplaced("a contiguous tensor")) };
        // One stream runs everything, so that the guards that candle's slices hand out have nothing to order.
        let base = match tensor.dtype() {
            DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&self.stream).0,
            DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&self.stream).0,
            DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&self.stream).0,
            _ => return Err(misplaced("f32, bf16 or u32")),
        };
        Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
    }

    fn map(&self, tile: &TileMap) -> Result<[u64; 16]> {
        self.bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let dims = [tile.columns, tile.rows];
        let strides = [tile.stride];
        let ones = [1u32, 1];
        // SAFETY: all pointers are to live arrays of the rank's length.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                tile.address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                tile.box_.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        code.result().map_err(|e| failed("describing a matrix to the copy engine", &e))?;
        Ok(map.opaque)
    }

    fn capability(&self) -> u32 {
        self.capability
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }
}
