"""The GPU: our fatbin through libcuda by ctypes, on torch's context, stream and tensors; products by cuBLAS with f32 results.

ctypes and not CuPy, because a tensor map goes by value and because the same few calls serve the child that compute-sanitizer watches, which
must not load torch's own kernels: `Mirrored` has tensors on the host, and copies what a launch names there and back.
"""

import ctypes
import glob
import os
import sys

import torch

from engine import At, Engine, LaunchError, Tile, pointers

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
R_32F, R_16BF, COMPUTE_32F, OP_N, OP_T = 0, 14, 68, 0, 1
WORKSPACE = 64 << 20


class Cuda:
    """libcuda; every error raises."""

    def __init__(self, library="libcuda.so.1"):
        self.lib = ctypes.CDLL(str(library))
        self.lib.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]

    def __call__(self, name, *args, doing=""):
        code = getattr(self.lib, name)(*args)
        if code:
            said = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(said))
            raise LaunchError(f"{doing or name}: CUDA error {code}, {said.value.decode() if said.value else '?'}")

    def module(self, path):
        module = ctypes.c_void_p()
        self("cuModuleLoad", ctypes.byref(module), str(path).encode(), doing=f"loading {path}")
        return module

    def function(self, module, name):
        function = ctypes.c_void_p()
        self("cuModuleGetFunction", ctypes.byref(function), module, name.encode(), doing=f"finding {name}")
        return function

    def tensor_map(self, address, rows, columns, box, promotion=3):
        """CU_TENSOR_MAP_*: BFLOAT16 9, INTERLEAVE_NONE 0, SWIZZLE_128B 3, L2_256B 3 (as the library's launcher), OOB_FILL_NONE 0."""
        raw = ctypes.create_string_buffer(128 + 64)
        at = ctypes.addressof(raw) + -ctypes.addressof(raw) % 64
        words = (ctypes.c_uint64 * 16).from_address(at)
        words.keep = raw
        dims, strides = (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint64 * 1)(2 * columns)
        boxes, ones = (ctypes.c_uint32 * 2)(*box), (ctypes.c_uint32 * 2)(1, 1)
        self("cuTensorMapEncodeTiled", ctypes.c_void_p(at), 9, 2, ctypes.c_void_p(address), dims, strides, boxes, ones, 0, 3, promotion, 0,
             doing=f"a tensor map of [{rows}, {columns}]")
        return words


def parameter_sizes(cuda, function):
    """Sizes in bytes of a loaded kernel's parameters; None where the driver cannot say."""
    if not hasattr(cuda.lib, "cuFuncGetParamInfo"):
        return None
    sizes, offset, size = [], ctypes.c_size_t(), ctypes.c_size_t()
    while cuda.lib.cuFuncGetParamInfo(function, ctypes.c_size_t(len(sizes)), ctypes.byref(offset), ctypes.byref(size)) == 0:
        sizes.append(size.value)
    return sizes


def library(names):
    """The first library that is loaded or can be found beside torch's packages."""
    folders = [p for base in sys.path for p in glob.glob(os.path.join(base, "nvidia", "*", "lib"))]
    for name in names + [os.path.join(f, n) for f in folders for n in names]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise LaunchError(f"none of {names} can be loaded")


class Blas:
    """cuBLAS with a handle and a workspace of its own, as the Rust side has: torch's math modes do not reach it."""

    def __init__(self, path=None, device="cuda"):
        self.lib = ctypes.CDLL(str(path)) if path else library(["libcublas.so.13", "libcublas.so.12", "libcublas.so"])
        self.handle = ctypes.c_void_p()
        self.check(self.lib.cublasCreate_v2(ctypes.byref(self.handle)), "cublasCreate")
        self.space = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
        self.one, self.zero, self.on = ctypes.c_float(1), ctypes.c_float(0), None

    @staticmethod
    def check(code, what):
        if code:
            raise LaunchError(f"{what}: cuBLAS status {code}")

    def product(self, stream, a, b, c, columns, first):
        """c[:, :columns] = a b[first:..]^T; a [n, d], b [m, d] of one type, c f32 [n, ldc], all row-major."""
        if stream != self.on:
            self.check(self.lib.cublasSetStream_v2(self.handle, ctypes.c_void_p(stream)), "cublasSetStream")
            # Setting the stream takes the workspace away.
            self.check(self.lib.cublasSetWorkspace_v2(self.handle, ctypes.c_void_p(self.space.data_ptr()), ctypes.c_size_t(WORKSPACE)),
                       "cublasSetWorkspace")
            self.on = stream
        n, d = a.shape
        kind = R_16BF if a.dtype == torch.bfloat16 else R_32F
        address = lambda v: ctypes.c_void_p(v)
        # Column-major: c^T [columns, n] = b a^T.
        self.check(self.lib.cublasGemmEx(
            self.handle, OP_T, OP_N, columns, n, d, ctypes.byref(self.one), address(b.data_ptr() + first * d * b.element_size()), kind, d,
            address(a.data_ptr()), kind, d, ctypes.byref(self.zero), address(c.data_ptr()), R_32F, c.shape[1], COMPUTE_32F, -1), "cublasGemmEx")


class Gpu(Engine):
    """The first GPU, with torch."""

    device = "cuda"

    def __init__(self, declarations, fatbin, checked=False):
        super().__init__(declarations)
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        properties = torch.cuda.get_device_properties(0)
        self.multiprocessors, self.hopper = properties.multi_processor_count, properties.major == 9
        self.open(Cuda(), Blas, fatbin, checked)

    def open(self, cuda, blas, fatbin, checked):
        self.cuda, self.checked, self.functions = cuda, checked, {}
        self.module, self.instead = self.cuda.module(fatbin), None
        try:
            self.blas = blas()
        except (LaunchError, AttributeError) as e:
            # Then torch's own product with an f32 result, and one more copy.
            self.blas, self.without_blas = None, str(e)

    def has(self, kernel):
        try:
            return bool(self.cuda.function(self.module, kernel))
        except LaunchError:
            return False

    def stream(self):
        return torch.cuda.current_stream().cuda_stream

    def variant(self, cubin):
        """The same engine with kernels of another build in front."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.instead, other.functions, other.recording = self.cuda.module(cubin), {}, None
        return other

    def map(self, tile):
        return self.cuda.tensor_map(tile.tensor.data_ptr(), tile.rows, tile.columns, Tile.BOX)

    def function(self, kernel, values):
        if kernel not in self.functions:
            try:
                function = self.cuda.function(self.instead or self.module, kernel)
            except LaunchError:
                function = self.cuda.function(self.module, kernel)
            sizes = parameter_sizes(self.cuda, function)
            if sizes is not None and sizes != [ctypes.sizeof(v) for v in values]:
                raise LaunchError(f"{kernel}: the fatbin's parameters have {sizes} bytes, its declaration {[ctypes.sizeof(v) for v in values]}")
            self.functions[kernel] = function
        return self.functions[kernel]

    def prepare(self, kernel, blocks, threads, shared, values, args):
        function = self.function(kernel, values)
        if shared > 48 << 10:
            self.cuda("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared, doing=f"{shared} bytes of shared memory for {kernel}")
        array, what = pointers(values), f"{kernel}<<<{blocks}, {threads}, {shared}>>>"
        launch, fixed = self.cuda.lib.cuLaunchKernel, (*blocks, 1, threads, 1, 1, shared)

        def work(stream):
            _ = values, args  # keeps them
            code = launch(function, *fixed, ctypes.c_void_p(stream), array, None)
            if code:
                self.cuda("cuLaunchKernel", function, *fixed, ctypes.c_void_p(stream), array, None, doing=what)
            if self.checked:
                self.cuda("cuStreamSynchronize", ctypes.c_void_p(stream), doing=what)

        return work

    def multiply(self, a, b, c, columns, first):
        if self.blas is None:
            c[:, :columns] = (torch.mm(a, b[first:first + columns].T, out_dtype=torch.float32) if a.dtype == torch.bfloat16
                              else a @ b[first:first + columns].T)
        else:
            self.blas.product(self.stream(), a, b, c, columns, first)


class Mirrored(Engine):
    """Tensors on the host, kernels on the GPU, without torch's CUDA: each launch copies what it names there, waits, and copies it back.
    Every tensor gets an allocation of its own size, so that overruns are seen. Products are the host's."""

    def __init__(self, declarations, fatbin, library="libcuda.so.1"):
        super().__init__(declarations)
        self.cuda = Cuda(library)
        self.cuda("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.cuda("cuDeviceGet", ctypes.byref(device), 0)
        self.cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.cuda("cuCtxSetCurrent", context)
        self.module, self.places = self.cuda.module(fatbin), {}

    def place(self, tensor):
        """Where a tensor's storage lies on the device."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.places:
            at = ctypes.c_uint64()
            self.cuda("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(max(storage.nbytes(), 1)))
            # The storage is kept: its address must not be given to another one.
            self.places[key] = (at.value, storage)
        return self.places[key][0]

    def address(self, tensor):
        return self.place(tensor) + tensor.data_ptr() - tensor.untyped_storage().data_ptr()

    def map(self, tile):
        return self.cuda.tensor_map(self.address(tile.tensor), tile.rows, tile.columns, Tile.BOX)

    def prepare(self, kernel, blocks, threads, shared, values, args):
        function = self.cuda.function(self.module, kernel)
        if shared > 48 << 10:
            self.cuda("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared)
        array = pointers(values)
        tensors = [v.tensor if isinstance(v, (At, Tile)) else v for v in args.values() if isinstance(v, (At, Tile, torch.Tensor))]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}

        def work(_stream):
            for key, storage in storages.items():
                self.cuda("cuMemcpyHtoD_v2", ctypes.c_uint64(self.places[key][0]), ctypes.c_void_p(key), ctypes.c_size_t(storage.nbytes()))
            self.cuda("cuLaunchKernel", function, *blocks, 1, threads, 1, 1, shared, None, array, None, doing=kernel)
            self.cuda("cuCtxSynchronize", doing=kernel)
            for key, storage in storages.items():
                self.cuda("cuMemcpyDtoH_v2", ctypes.c_void_p(key), ctypes.c_uint64(self.places[key][0]), ctypes.c_size_t(storage.nbytes()))

        _ = values
        return work
