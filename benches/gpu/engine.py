"""Where kernels run. Code that plans launches is written once against `Engine`; arguments go by name and are checked against the
declarations: kind, range, and the element type behind each pointer.

`Simulated` runs them on this CPU (kernels/sim), `Planned` only writes down what would be launched; `driver.py` has the GPU.
"""

import ctypes
import subprocess
from pathlib import Path

import torch

# Unsigned types by the signed ones of the same width: torch computes with those.
ELEMENTS = {
    "f32": (torch.float32,), "f64": (torch.float64,), "bf16": (torch.bfloat16,), "u32": (torch.int32,), "u64": (torch.int64,),
    "u16": (torch.bfloat16, torch.float32), "uint2": (torch.int64,), "Entry": (torch.int64,), "float2": (torch.float32,),
    "BatchSearch": (torch.int32,), "BatchFound": (torch.int32,),
}
C_TYPES = {"u32": ctypes.c_uint32, "i32": ctypes.c_int32, "u64": ctypes.c_uint64, "f32": ctypes.c_float}
POISON = 0xCB


class At:
    """A pointer into a tensor: `offset` elements behind its start. `as_` reads the bytes as another type."""

    def __init__(self, tensor, offset=0, as_=None):
        self.tensor, self.offset, self.as_ = tensor, offset, as_


class Tile:
    """A bf16 matrix [rows, columns] as the copy engine reads it, in boxes of 64 columns and 128 rows."""

    BOX = (64, 128)

    def __init__(self, tensor):
        rows, columns = tensor.shape
        if tensor.dtype != torch.bfloat16 or not tensor.is_contiguous() or columns % 8:
            raise ValueError(f"no tensor map of {tensor.dtype} {tuple(tensor.shape)}")
        self.tensor, self.rows, self.columns = tensor, rows, columns


class LaunchError(Exception):
    pass


class Engine:
    """A device. `device` is torch's name of where tensors lie."""

    device = "cpu"
    multiprocessors = 132
    hopper = True

    def __init__(self, declarations):
        self.declarations = declarations
        self.recording = None
        self.allocated = 0

    # Memory

    def empty(self, *shape, dtype=torch.float32):
        """Poisoned, so that what no kernel wrote shows: NaN in every float."""
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        self.allocated += tensor.numel() * tensor.element_size()
        if tensor.numel() and tensor.device.type != "meta":
            if tensor.dtype.is_floating_point:
                tensor.fill_(float("nan"))
            else:
                tensor.view(torch.uint8).fill_(POISON)
        return tensor

    def zeros(self, *shape, dtype=torch.float32):
        tensor = self.empty(*shape, dtype=dtype)
        tensor.zero_()
        return tensor

    def put(self, tensor):
        """A contiguous copy on the device."""
        self.allocated += tensor.numel() * tensor.element_size()
        return tensor.detach().to(self.device).contiguous().clone()

    def read(self, tensor):
        """On the host; waits."""
        return tensor.detach().cpu()

    # Work, done at once or written into a program

    def do(self, work):
        """`work()` on torch's current stream."""
        if self.recording is None:
            work()
        else:
            self.recording.append(lambda stream: work())

    def zero(self, tensor):
        self.do(tensor.zero_)

    def bind(self, kernel, name, kind, pointer, value):
        """A ctypes value for a parameter."""
        def wrong(why):
            return LaunchError(f"{kernel}: argument {name} ({kind}{'*' if pointer else ''}): {why}")

        if pointer:
            if value is None:
                return ctypes.c_uint64(0)
            at = value if isinstance(value, At) else At(value)
            if not isinstance(at.tensor, torch.Tensor):
                raise wrong(f"{value!r} is no tensor")
            if at.as_ is None and at.tensor.dtype not in ELEMENTS[kind]:
                raise wrong(f"a tensor of {at.tensor.dtype}")
            if at.tensor.device.type != torch.device(self.device).type:
                raise wrong(f"a tensor on {at.tensor.device}")
            if not at.tensor.is_contiguous():
                raise wrong("a tensor that is not contiguous")
            if at.offset and at.offset >= at.tensor.numel():
                raise wrong(f"offset {at.offset} of {at.tensor.numel()}")
            return ctypes.c_uint64(self.address(at.tensor) + at.offset * at.tensor.element_size())
        if kind == "TensorMap":
            if not isinstance(value, Tile):
                raise wrong(f"{value!r} is no tile")
            return self.map(value)
        if kind == "f32":
            if not isinstance(value, float):
                raise wrong(f"{value!r} is no float")
            return ctypes.c_float(value)
        bits = 64 if kind == "u64" else 32
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
            raise wrong(f"{value!r} is no unsigned integer of {bits} bits")
        return C_TYPES[kind](value)

    def address(self, tensor):
        return tensor.data_ptr()

    def launch(self, kernel, grid, threads, shared=0, **args):
        if kernel not in self.declarations:
            raise LaunchError(f"there is no kernel {kernel}")
        parameters = self.declarations[kernel]
        names = [p[0] for p in parameters]
        if set(names) != set(args):
            raise LaunchError(f"{kernel}: missing {sorted(set(names) - set(args))}, unknown {sorted(set(args) - set(names))}")
        blocks = (grid, 1) if isinstance(grid, int) else tuple(grid)
        if not (0 < blocks[0] < 1 << 31 and 0 < blocks[1] < 65536 and 0 < threads <= 1024 and 0 <= shared <= 227 << 10):
            raise LaunchError(f"{kernel}: no device launches {blocks} blocks of {threads} threads with {shared} bytes")
        values = [self.bind(kernel, name, kind, pointer, args[name]) for name, kind, pointer in parameters]
        work = self.prepare(kernel, blocks, threads, shared, values, args)
        if self.recording is None:
            work(self.stream())
        else:
            self.recording.append(work)

    def product(self, a, b, c, columns=None, first=0, precise=False):
        """c[:, :columns] = a b[first:first + columns]^T in f32: bf16 operands as they are, f32 ones in full precision."""
        columns = b.shape[0] - first if columns is None else columns
        self.do(lambda: self.multiply(a, b, c, columns, first))

    def multiply(self, a, b, c, columns, first):
        c[:, :columns] = a.float() @ b[first:first + columns].float().T

    def has(self, kernel):
        return kernel in self.declarations

    def stream(self):
        return 0

    def record(self):
        return Program(self)

    # What an engine brings

    def prepare(self, kernel, blocks, threads, shared, values, args):
        """A function of the stream that launches."""
        raise NotImplementedError

    def map(self, tile):
        raise NotImplementedError


class Program:
    """Launches written down once, run many times: `with engine.record() as program: ..`, then `program()`."""

    def __init__(self, engine):
        self.engine, self.steps = engine, []

    def __enter__(self):
        self.engine.recording = self.steps
        return self

    def __exit__(self, *_):
        self.engine.recording = None

    def __call__(self):
        stream = self.engine.stream()
        for step in self.steps:
            step(stream)


def pointers(values):
    """void*[] of ctypes values; they must outlive it."""
    return (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])


class Simulated(Engine):
    """kernels/sim as a shared library."""

    def __init__(self, declarations, library, schedule=0):
        super().__init__(declarations)
        self.library, self.schedule = ctypes.CDLL(str(library)), schedule
        self.library.lapidary_sim_error.restype = ctypes.c_char_p
        self.library.lapidary_sim_parameters.restype = ctypes.c_char_p

    def letters(self, kernel):
        found = self.library.lapidary_sim_parameters(kernel.encode())
        return found.decode() if found else None

    def has(self, kernel):
        return self.letters(kernel) is not None

    def map(self, tile):
        words = [tile.tensor.data_ptr(), tile.columns, tile.rows, 2 * tile.columns, *Tile.BOX]
        return (ctypes.c_uint64 * 16)(*words)

    def prepare(self, kernel, blocks, threads, shared, values, args):
        grid, block = (ctypes.c_uint32 * 3)(*blocks, 1), (ctypes.c_uint32 * 3)(threads, 1, 1)
        array, name = pointers(values), kernel.encode()

        def work(_stream):
            _ = args  # keeps the tensors
            if self.library.lapidary_sim_launch(name, grid, block, shared, array, ctypes.c_size_t(len(values)), self.schedule & 0xFFFFFFFF):
                raise LaunchError(f"{kernel}: {self.library.lapidary_sim_error().decode()}")

        return work


class Planned(Engine):
    """Writes down launches; nothing runs and no memory is taken."""

    device = "meta"

    def __init__(self, declarations, out=None):
        super().__init__(declarations)
        self.out = out if out is not None else []

    def put(self, tensor):
        self.allocated += tensor.numel() * tensor.element_size()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def read(self, tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def multiply(self, a, b, c, columns, first):
        self.out.append(f"product [{a.shape[0]}, {columns}] over {a.shape[1]} in {str(a.dtype)[6:]}, rows {first}.. into stride {c.shape[1]}")

    def map(self, tile):
        return (ctypes.c_uint64 * 16)()

    def prepare(self, kernel, blocks, threads, shared, values, args):
        def show(name, value):
            at = value if isinstance(value, At) else At(value) if isinstance(value, (torch.Tensor, Tile)) else None
            if at is None:
                return f"{name}={value}"
            tensor = at.tensor.tensor if isinstance(at.tensor, Tile) else at.tensor
            offset = f"+{at.offset}" if at.offset else ""
            return f"{name}={str(tensor.dtype)[6:]}{list(tensor.shape)}{offset}".replace(" ", "")

        words = " ".join(show(name, args[name]) for name, _, _ in self.declarations[kernel])
        line = f"{kernel}<<<{blocks[0]}x{blocks[1]}, {threads}, {shared}>>> {words}"
        return lambda _stream: self.out.append(line)


def build_simulator(repository, folder):
    """The simulator as a shared library, compiled unless it is newer than its sources."""
    library = Path(folder) / "simulator.so"
    sources = [p for p in (Path(repository) / "kernels").rglob("*") if p.suffix in (".cu", ".cuh", ".hpp", ".cpp")]
    if not library.is_file() or library.stat().st_mtime < max(p.stat().st_mtime for p in sources):
        library.parent.mkdir(parents=True, exist_ok=True)
        flags = "-std=c++17 -O2 -w -ffp-contract=off -fPIC -shared -ftrivial-auto-var-init=pattern -I kernels kernels/sim/all.cpp".split()
        subprocess.run(["g++", *flags, "-o", str(library.resolve())], cwd=repository, check=True)
    return library
