"""Encodes: which launches, with which grids, shared memory and room. The same plans as src/kernels/cuda/{encode,batch}.rs and the table in
kernels/README.md; sizes are pure functions. Not for training (`training.py`)."""

import torch

from engine import At, Tile

SHARED = 96 << 10  # shared memory of a block on every chip since sm_80
SCRATCH = 64 << 20  # scores held at once
HOPPER_SHARED = 200704
SMALL_SHARED, AMPERE_SHARED = 66560, 99328
PAD = -1


def up(n, to):
    return -(-n // to) * to


def ceil(n, by):
    return -(-n // by)


def warps(items):
    """One warp per item, eight to a block."""
    return max(ceil(items, 8), 1), 256


def chunk(n, d_sae, scratch=SCRATCH):
    """Latents whose scores are made at once."""
    fits = scratch // 4 // max(n, 1) // 256 * 256
    return min(max(fits, 256), 8192, up(d_sae, 256))


def room(k, certified):
    """Entries of a row's list in the merge."""
    kept = 8 * k + 256 if certified else k + k // 8
    return up(kept + 256 + max(k, 224), 32)


def summing(d):
    return (d + 16) * 2.0 ** -22


def finish_shape(k):
    """(slots, warps of a block)."""
    slots = max(1 << (k - 1).bit_length(), k + 32, 512)
    return slots, min(SHARED // (8 * slots), 8)


def splits(n, m, multiprocessors, tile=256):
    """Parts of a row's tiles that different blocks take: fewest rounds of tiles, then fewest parts."""
    rows, tiles = ceil(n, 128), ceil(m, tile)
    return min(range(1, min(16, tiles) + 1), key=lambda s: (ceil(rows * s, multiprocessors) * ceil(tiles, s), s))


def fused_cap(k, added):
    return up(k + k // 10 + added, 8)


def row_room(k, d_sae):
    """Codes that a row may hold for a batch selection."""
    return min(max(min(8 * k, 512), 64), d_sae)


class Codes:
    """Rows of k entries, padded, largest first."""

    def __init__(self, e, n, k):
        self.n, self.k = n, k
        self.values, self.indices, self.lengths = e.empty(n, k), e.empty(n, k, dtype=torch.int32), e.empty(n, dtype=torch.int32)


def cast(e, x, b=None, full=None, half=None, norms=None, bad=None):
    n, d = x.shape
    bad = e.zeros(1, dtype=torch.int32) if bad is None else bad
    grid, threads = warps(n)
    e.launch("cast_rows", grid, threads, x=x, b=b, n=n, d=d, full=full, half=half, norms=norms, bad=bad)
    return bad


def finish(e, entries, counts, lists, cap, codes):
    slots, w = finish_shape(codes.k)
    e.launch("finish", ceil(codes.n, w), 32 * w, 8 * slots * w, entries=entries, counts=counts, lists_per_row=lists, cap=cap, n=codes.n,
             k=codes.k, slots=slots, values=codes.values, indices=codes.indices, nnz=codes.lengths)


class Merge:
    """Scores by matrix product a chunk at a time, merged into lists (v1). With `certified`, the exact set of f32 parameters."""

    def __init__(self, e, n, d, m, k, certified=False, scratch=SCRATCH):
        self.e, self.n, self.d, self.m, self.k, self.certified = e, n, d, m, k, certified
        self.width, self.cap = chunk(n, m, scratch), room(k, certified)
        self.scores = e.empty(n, self.width)
        self.entries = e.empty(n, self.cap, dtype=torch.int64)
        self.counts, self.gates = e.empty(n, dtype=torch.int32), e.empty(n)
        self.counters = e.zeros(2, dtype=torch.int64) if certified else None

    def start(self, guess=None):
        self.e.launch("merge_start", max(ceil(self.n, 256), 1), 256, n=self.n, guess=guess, relu=1, counts=self.counts, gates=self.gates)

    def chunks(self, x, w, launch):
        for first in range(0, self.m, self.width):
            columns = min(self.width, self.m - first)
            self.e.product(x, w, self.scores, columns, first)
            launch(first, columns)

    def lists(self, x, w, bias, guess=None):
        """Fills the lists: bf16 or f32 operands."""
        grid, threads = warps(self.n)
        self.start(guess)
        self.chunks(x, w, lambda first, columns: self.e.launch(
            "merge_topk", grid, threads, scores=self.scores, stride=self.width, bias=bias, n=self.n, columns=columns, first=first, k=self.k,
            cap=self.cap, lists=self.entries, counts=self.counts, gates=self.gates))

    def exact_lists(self, x, w, bias, x_half, w_half, x_norms, w_norms):
        """Screens with bf16, decides with f64; `counters` has dot products and rows done in full."""
        e, (grid, threads) = self.e, warps(self.n)
        bounds = dict(sum=summing(self.d), row_norms=x_norms, norms=w_norms)
        lists = dict(k=self.k, cap=self.cap, lists=self.entries, counts=self.counts)
        self.start()
        self.chunks(x_half, w_half, lambda first, columns: e.launch(
            "merge_certified", grid, threads, scores=self.scores, stride=self.width, bias=bias, n=self.n, columns=columns, first=first,
            gates=self.gates, **lists, **bounds))
        e.zero(self.counters)
        exact = dict(x=x, w=w, bias=bias, n=self.n, d=self.d, relu=1)
        e.launch("rescore", grid, threads, gates=self.gates, scored=self.counters, **exact, **lists, **bounds)
        e.launch("exact_rows", max(self.n, 1), 256, m=self.m, done=At(self.counters, 1, "u32"), **exact, **lists)

    def run(self, x, w, bias, codes, guess=None):
        self.lists(x, w, bias, guess)
        finish(self.e, self.entries, self.counts, 1, self.cap, codes)

    def run_exact(self, x, w, bias, x_half, w_half, x_norms, w_norms, codes):
        self.exact_lists(x, w, bias, x_half, w_half, x_norms, w_norms)
        finish(self.e, self.entries, self.counts, 1, self.cap, codes)


class Fused:
    """Candidates chosen while the scores are in registers (v2: `encode_hopper`, `encode_hopper_pair`; v3: `encode_ampere`, `.._small`)."""

    def __init__(self, e, n, d, m, k, kernel="encode_hopper", parts=None, cap=None):
        self.e, self.n, self.d, self.m, self.k, self.kernel = e, n, d, m, k, kernel
        self.hopper = kernel.startswith("encode_hopper")
        self.parts = parts or splits(n, m, e.multiprocessors, 256 if self.hopper else 128)
        self.lists = self.parts * (4 if self.hopper else 8)
        self.cap = cap or fused_cap(k, 64 if self.hopper else 16)
        if n * self.lists * self.cap * 8 >= 1 << 32:
            raise ValueError("more than 4 GiB of lists: encode the rows in parts")
        self.entries = e.empty(n, self.lists, self.cap, dtype=torch.int64)
        self.counts, self.bounds = e.empty(n, self.lists, dtype=torch.int32), e.empty(n, dtype=torch.int32)

    def choose(self, x, w, bias, relu=1, entries=None):
        e, blocks = self.e, ceil(self.n, 128)
        e.zero(self.bounds)
        args = dict(bias=bias, n=self.n, m=self.m, d=self.d, k=self.k, relu=relu, bounds=self.bounds, counts=self.counts, cap=self.cap,
                    entries=self.entries if entries is None else entries)
        if self.hopper:
            blocks = up(blocks, 2) if self.kernel == "encode_hopper_pair" else blocks
            e.launch(self.kernel, (blocks, self.parts), 384, HOPPER_SHARED, x_map=Tile(x), w_map=Tile(w), **args)
        else:
            shared = SMALL_SHARED if self.kernel.endswith("small") else AMPERE_SHARED
            e.launch(self.kernel, (blocks, self.parts), 128, shared, x=x, w=w, **args)

    def run(self, x, w, bias, codes, relu=1):
        self.choose(x, w, bias, relu)
        finish(self.e, self.entries, self.counts, self.lists, self.cap, codes)


class Batch:
    """The `total` largest codes of a batch, out of sorted rows of `width`."""

    DIGITS = ((21, 11), (10, 11), (0, 10))

    def __init__(self, e, n, capacity):
        self.e, self.n, self.capacity = e, n, capacity
        ints = lambda size: e.empty(size, dtype=torch.int32)
        self.search, self.found, self.starts, self.indices = ints(4), ints(4), ints(n + 1), ints(max(capacity, 1))
        self.histogram = e.zeros(2048, dtype=torch.int32)
        self.values, self.guess, self.guessed = e.empty(max(capacity, 1)), e.empty(1), False
        self.answer = None

    def choose(self, rows, total, d_sae):
        """`answer()` afterwards: (too few, cut), both 0 where the selection holds."""
        e, n, width = self.e, self.n, rows.k
        e.zero(self.found)
        e.launch("batch_start", 1, 32, search=self.search, total=total)
        common = dict(values=rows.values, lengths=rows.lengths, n=n, width=width, search=self.search)
        for shift, bits in self.DIGITS:
            e.launch("batch_histogram", min(max(ceil(n, 8), 1), 1024), 256, shift=shift, bits=bits, histogram=self.histogram, **common)
            e.launch("batch_pick", 1, 32, histogram=self.histogram, search=self.search, shift=shift, bits=bits)
        e.launch("batch_rows", 1, 1024, guess=self.guess if self.guessed else None, d_sae=d_sae, starts=self.starts, found=self.found, **common)
        e.do(self.ask)
        grid, threads = warps(n)
        e.launch("batch_emit", grid, threads, values=rows.values, indices=rows.indices, n=n, width=width, starts=self.starts,
                 to_values=self.values, to_indices=self.indices)
        e.launch("batch_guess", 1, 32, smallest=At(self.found, 0, "f32"), guess=self.guess)
        self.guessed = True

    def ask(self):
        # The host waits here, as it does in training: rows that were cut are done again there.
        self.answer = self.e.read(self.found)[2:].tolist()
