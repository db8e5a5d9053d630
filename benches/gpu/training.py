"""A training step: decode, codes by latent, gradients' norm, update, AuxK. The same launches, in the same order, with the same room as
src/kernels/cuda/{resident,columns,decode,update,reduce}.rs. Not for encodes (`launch.py`)."""

import torch

from engine import At
from launch import Batch, Codes, Fused, Merge, cast, ceil, row_room, warps

ITEMS, MOST_THREADS, RUN = 8, 1024, 4
SCAN_BLOCK = 1024
SEGMENT_SUMS = 128 << 20
PER_BLOCK, CHUNKS = 4096, 512


def block(widths, run):
    """(threads, read element by element?) of blocks that hold rows in their registers."""
    odd = any(d % run for d in widths)
    run = 1 if odd else run
    runs = max(ceil(max(widths), run), 1)
    fewest = ceil(ceil(runs, ITEMS // run), 32) * 32
    if fewest > MOST_THREADS:
        raise ValueError(f"rows of {max(widths)} elements")
    return min(range(fewest, MOST_THREADS + 1, 32), key=lambda t: (ceil(runs, t) * t, t)), odd


def named(kernel, low, odd):
    return f"{kernel}_{'bf16' if low else 'f32'}{'_odd' if odd else ''}"


class RowCodes:
    """Codes by row as kernels take them: padded rows, or rows that begin at `starts`."""

    def __init__(self, n, indices, values, k=0, starts=None, capacity=None):
        self.n, self.values = n, values
        self.args = dict(ends=starts, k=k, capacity=n * k if capacity is None else capacity, indices=indices)


def decode(e, w, base, stride, factor, codes, latents, out=None, half=None, squares=None):
    """factor base + sum v W_j over entries of latents from..to."""
    (m, d), low = w.shape, w.dtype == torch.bfloat16
    threads, odd = block([d], 8 if low else 4)
    e.launch(named("decode", low, odd), max(codes.n, 1), threads, w=w, base=base, base_stride=stride, factor=factor, values=codes.values,
             **{"from": latents[0], "to": min(latents[1], m)}, d=d, out=out, half=half, squares=squares, **codes.args)


class Columns:
    """Codes by latent."""

    def __init__(self, e, m, n, capacity, width):
        self.e, self.m, self.n, self.capacity, self.segment = e, m, n, capacity, 256
        while self.most() * width * 4 > SEGMENT_SUMS:
            self.segment *= 2
        ints = lambda size: e.empty(max(size, 1), dtype=torch.int32)
        self.starts, self.rows, self.values = ints(m + 1), ints(capacity), e.empty(max(capacity, 1))
        self.segments, self.owners, self.counts = ints(m + 1), ints(self.most()), ints(m)
        self.sums = e.empty(ceil(m + 1, SCAN_BLOCK), dtype=torch.int64)
        self.entries = e.empty(max(capacity, 1), dtype=torch.int64)
        # What its entries gather.
        most = max(self.most(), 1)
        self.dz, self.gathered, self.biases = e.empty(max(capacity, 1)), e.empty(most, width), e.empty(most)

    def most(self):
        """Segments there are at most."""
        if self.segment >= self.n:
            return 0
        return min(self.capacity // self.segment + self.capacity // (self.segment + 1), self.m * ceil(self.n, self.segment))

    def build(self, codes):
        e, m, n, blocks = self.e, self.m, codes.n, ceil(self.m + 1, SCAN_BLOCK)
        grid, threads = warps(n)
        e.zero(self.counts)
        e.launch("columns_count", grid, threads, n=n, m=m, counts=self.counts, **codes.args)
        e.launch("columns_sums", blocks, 256, counts=self.counts, m=m, segment=self.segment, sums=self.sums)
        e.launch("columns_carry", 1, 1024, sums=self.sums, blocks=blocks)
        e.launch("columns_starts", blocks, 256, counts=self.counts, m=m, segment=self.segment, sums=self.sums, starts=self.starts,
                 segments=self.segments, owners=self.owners, max_segments=self.most())
        e.launch("columns_scatter", grid, threads, values=codes.values, n=n, m=m, next=self.counts, entries=self.entries, **codes.args)
        e.launch("columns_sort", *warps(m), starts=self.starts, entries=self.entries, n=n, m=m, rows=self.rows, values=self.values)

    def source(self, p, grads, scale, times=None):
        """The arguments of `SOURCE` in kernels/update.cu."""
        parts = dict(starts=self.starts, rows=self.rows, values=self.values, dz=self.dz, segments=self.segments, sums=self.gathered,
                     biases=self.biases, grads=grads, times=times, scale=scale)
        return {f"{p}_{name}": value for name, value in parts.items()}


NO_SOURCE = {f"b_{name}": None for name in "starts rows values dz segments sums biases grads times".split()} | {"b_scale": 0.0}


class Reduce:
    """Sums of fixed shape."""

    def __init__(self, e, count, n, d):
        self.e = e
        self.partials = e.empty(max(ceil(count, PER_BLOCK), 1), dtype=torch.float64)
        self.columns_room = e.empty(max(d, 1) * min(max(ceil(n, 64), 1), CHUNKS), dtype=torch.float64)

    def parts(self, x, count):
        blocks = max(ceil(count, PER_BLOCK), 1)
        self.e.launch("sum_f64", blocks, 256, x=x, count=count, per=PER_BLOCK, factor=1.0, add=0, out=self.partials)
        return blocks

    def sum(self, x, count, factor, out):
        blocks = self.parts(x, count)
        self.e.launch("sum_f64", 1, 256, x=self.partials, count=blocks, per=blocks, factor=factor, add=0, out=out)

    def columns(self, x, weights=None, factor=1.0, base=None, total=None, rounded=None):
        n, d = x.shape
        per = max(ceil(n, CHUNKS), 64)
        count = max(ceil(n, per), 1)
        self.e.launch(named("column_partials", x.dtype == torch.bfloat16, False), (max(ceil(d, 128), 1), count), 128, x=x, weights=weights,
                      n=n, d=d, per=per, partials=self.columns_room)
        self.e.launch("column_finish", ceil(d, 32), 256, partials=self.columns_room, chunks=count, d=d, factor=factor, base=base,
                      total=total, rounded=rounded)

    def spread(self, x, sums, squares, out):
        n, d = x.shape
        self.columns(x, total=sums)
        grid, threads = warps(n)
        self.e.launch("spread_rows", grid, threads, x=x, sums=sums, n=n, d=d, squares=squares)
        self.sum(squares, n, 1.0, out)


class Aux:
    """AuxK: the dead latents, the k largest positive among them, their decode onto the error, and their list."""

    SCRATCH = 64 << 20

    def __init__(self, e, coef, k, n, m, d, low):
        self.e, self.coef, self.k, self.n, self.m, self.d = e, coef, min(k, m), n, m, d
        self.columns = Columns(e, m, n, n * self.k, 2 * d)
        self.list, self.count = e.empty(m, dtype=torch.int32), e.empty(1, dtype=torch.int32)
        self.indices, self.values = e.empty(n, self.k, dtype=torch.int32), e.empty(n, self.k)
        self.error, self.half = e.empty(n, d), e.empty(n, d, dtype=torch.bfloat16) if low else None
        self.squares, self.sums = e.empty(n, dtype=torch.float64), e.empty(d, dtype=torch.float64)
        self.numbers = e.zeros(4, dtype=torch.float64)  # spread, square, loss; f32 scale
        self.reduce = Reduce(e, n, n, d)

    def dead(self, silent, after):
        """How many; waits."""
        self.e.launch("dead_list", 1, 1024, silent=silent, after=after, m=self.m, list=self.list, count=self.count)
        return int(self.e.read(self.count)[0])

    def run(self, dead, x, w, bias, decoder, last):
        """x, w: operands of the scores; `last`: the error f32 [n, d]."""
        e, n, d, k = self.e, self.n, self.d, self.k
        rows = e.empty(dead, d, dtype=w.dtype)
        grid, threads = warps(dead)
        e.launch("gather_rows", grid, threads, rows=w, list=self.list, count=dead, bytes=d * w.element_size(), to=rows)
        size = min(max(self.SCRATCH // 4 // dead, 1), n)
        scores = e.empty(size, dead)
        for first in range(0, n, size):
            count = min(size, n - first)
            e.product(x[first:first + count], rows, scores[:count])
            e.launch("select_rows", count, 256, scores=scores, stride=dead, bias=bias, list=self.list, n=count, count=dead, k=k,
                     indices=At(self.indices, first * k), values=At(self.values, first * k))
        codes = RowCodes(n, self.indices, self.values, k)
        decode(e, decoder, last, d, 1.0, codes, (0, self.m), out=self.error, half=self.half, squares=self.squares)
        self.reduce.sum(self.squares, n, 1.0, At(self.numbers, 1))
        self.reduce.spread(last, self.sums, self.squares, At(self.numbers, 0))
        e.launch("aux_scale", 1, 1, spread=At(self.numbers, 0), square=At(self.numbers, 1), coef=self.coef, scale=At(self.numbers, 3, "f32"),
                 loss=At(self.numbers, 2))
        self.columns.build(codes)

    def source(self):
        return self.columns.source("b", self.error if self.half is None else self.half, 1.0, At(self.numbers, 3, "f32"))


class Step:
    """A coder that learns on the device. `precision`: bf16, f32 or certified; `encoder`: merge, or a fused kernel's name (bf16 only);
    `choice`: topk or batch."""

    def __init__(self, e, n, k, w_enc, b_enc, w_dec, b_dec, precision="bf16", encoder="merge", choice="topk", clip=0.0, lr=1e-3,
                 betas=(0.9, 0.999), eps=1e-8, own=False, aux=None):
        (self.m, self.d), self.e, self.n, self.k = w_enc.shape, e, n, k
        m, d = self.m, self.d
        self.low, self.certified, self.choice = precision == "bf16", precision == "certified", choice
        self.clip, self.lr, self.betas, self.eps, self.steps = clip, lr, betas, eps, 0
        # `own`: the parameters are ours to change, where there is no room for a copy.
        self.parameters = [t if own else e.put(t) for t in (w_enc, b_enc, w_dec, b_dec)]
        self.first, self.second = ([e.zeros(*t.shape) for t in self.parameters] for _ in range(2))
        screened = precision != "f32"
        self.half_enc, self.half_dec = (e.empty(m, d, dtype=torch.bfloat16) if screened else None for _ in range(2))
        self.norms = e.empty(m, 2) if screened else None
        if screened:
            bad = cast(e, self.parameters[0], half=self.half_enc, norms=self.norms)
            cast(e, self.parameters[2], half=self.half_dec, bad=bad)
        self.silent = e.zeros(m, dtype=torch.int64)
        self.x, self.xc = e.empty(n, d), e.empty(n, d)
        self.xc_half = e.empty(n, d, dtype=torch.bfloat16) if screened else None
        self.row_norms = e.empty(n, 2) if self.certified else None
        self.bad = e.zeros(1, dtype=torch.int32)
        width = row_room(k, m) if choice == "batch" else k
        self.rows = Codes(e, n, width)
        self.encoder = Merge(e, n, d, m, width, self.certified) if encoder == "merge" else Fused(e, n, d, m, width, encoder)
        self.batch = Batch(e, n, n * k) if choice == "batch" else None
        self.errors, self.errors_half = e.empty(n, d), e.empty(n, d, dtype=torch.bfloat16) if self.low else None
        self.squares, self.loss = e.empty(n, dtype=torch.float64), e.empty(1, dtype=torch.float64)
        self.columns = Columns(e, m, n, n * k, 2 * d)
        self.parallel, self.bias_grad, self.latent_squares = e.empty(m), e.empty(m), e.empty(m, dtype=torch.float64)
        self.b_dec_sums, self.b_dec_grad = e.empty(d, dtype=torch.float64), e.empty(d)
        self.reduce = Reduce(e, m, max(n, m), d)
        self.row_reduce = Reduce(e, n, n, d)
        self.control, self.norm = e.empty(2), e.empty(1, dtype=torch.float64)
        self.aux = Aux(e, *aux, n, m, d, self.low) if aux else None
        self.dead = 0

    @property
    def rows_x(self):
        return self.xc_half if self.low else self.xc

    def encode(self):
        w_enc, b_enc, _, b_dec = self.parameters
        cast(self.e, self.x, b_dec, self.xc, self.xc_half, self.row_norms, self.bad)
        if self.certified:
            self.encoder.run_exact(self.xc, w_enc, b_enc, self.xc_half, self.half_enc, self.row_norms, self.norms, self.rows)
        elif isinstance(self.encoder, Fused):
            self.encoder.run(self.xc_half, self.half_enc, b_enc, self.rows)
        else:
            operands = (self.xc_half, self.half_enc) if self.low else (self.xc, w_enc)
            guess = self.batch.guess if self.batch and self.batch.guessed and not self.certified else None
            self.encoder.run(*operands, b_enc, self.rows, guess)
        if self.batch is None:
            return RowCodes(self.n, self.rows.indices, self.rows.values, self.k)
        self.batch.choose(self.rows, self.n * self.k, self.m)
        return RowCodes(self.n, self.batch.indices, self.batch.values, starts=self.batch.starts, capacity=self.n * self.k)

    def decode(self, codes):
        self.columns.build(codes)
        decoder = self.half_dec if self.low else self.parameters[2]
        decode(self.e, decoder, self.xc, self.d, -1.0, codes, (0, self.m), out=self.errors, half=self.errors_half, squares=self.squares)
        self.row_reduce.sum(self.squares, self.n, 1.0, self.loss)
        if self.aux and self.dead:
            operands = (self.xc_half, self.half_enc) if self.low else (self.xc, self.parameters[0])
            self.aux.run(self.dead, *operands, self.parameters[1], decoder, self.errors)

    def lists(self):
        grads = self.errors_half if self.low else self.errors
        groups = dict(ends=None, groups=1, stride=self.n * self.d)
        second = self.aux.source() if self.aux and self.dead else NO_SOURCE
        return self.columns.source("a", grads, 2.0 / (self.n * self.d)), second, groups

    def measure(self):
        e, n, m, d = self.e, self.n, self.m, self.d
        threads, odd = block([d, d], RUN)
        first, second, groups = self.lists()
        w_dec, x = self.parameters[2], self.rows_x
        of = [(self.columns, first, groups)]
        if self.aux and self.dead:
            of.append((self.aux.columns, {"a" + name[1:]: v for name, v in second.items()}, dict(ends=None, groups=1, stride=0)))
        for columns, source, grouped in of:
            if columns.most():
                e.launch(named("gather_segments", self.low, odd), columns.most(), threads, owners=columns.owners, segment=columns.segment,
                         max_segments=columns.most(), m=m, x=x, w_dec=w_dec, d_in=d, d_out=d, **source, **grouped)
        e.launch(named("measure", self.low, odd), m, threads, x=x, w_dec=w_dec, d_in=d, d_out=d, unit_norm=1, parallel=self.parallel,
                 bias=self.bias_grad, squares=self.latent_squares, **first, **second, **groups)
        self.reduce.columns(first["a_grads"], factor=first["a_scale"], total=self.b_dec_sums, rounded=self.b_dec_grad)
        self.reduce.columns(self.parameters[0], self.bias_grad, -1.0, self.b_dec_sums, rounded=self.b_dec_grad)
        blocks = self.reduce.parts(self.latent_squares, m)
        e.launch("clip_factor", 1, 256, squares=self.reduce.partials, count=blocks, b_dec=self.b_dec_grad, d=d, limit=float(self.clip),
                 control=self.control, norm=self.norm, bad=self.bad)

    def rule(self):
        beta1, beta2 = self.betas
        t = max(self.steps, 1)
        return dict(control=self.control, beta1=beta1, beta2=beta2, eps=self.eps, step_size=self.lr / (1 - beta1 ** t),
                    root=(1 - beta2 ** t) ** -0.5)

    def apply(self):
        e, d = self.e, self.d
        self.steps += 1
        threads, odd = block([d, d], RUN)
        first, second, groups = self.lists()
        (w_enc, b_enc, w_dec, b_dec), m, v = self.parameters, self.first, self.second
        e.launch(named("update", self.low, odd), (self.m, 2), threads, n=self.n, x=self.rows_x, d_in=d, d_out=d, unit_norm=1,
                 parallel=self.parallel, bias=self.bias_grad, w_dec=w_dec, m_dec=m[2], v_dec=v[2], w_enc=w_enc, m_enc=m[0], v_enc=v[0],
                 b_enc=b_enc, m_bias=m[1], v_bias=v[1], half_dec=self.half_dec, half_enc=self.half_enc, norms=self.norms,
                 silent=self.silent, **first, **second, **groups, **self.rule())
        e.launch("update_vector", max(ceil(d, 256), 1), 256, p=b_dec, m=m[3], v=v[3], g=self.b_dec_grad, count=d, **self.rule())

    def run(self):
        """One step on self.x."""
        codes = self.encode()
        if self.aux:
            self.dead = self.aux.dead(self.silent, self.aux_after)
        self.decode(codes)
        self.measure()
        self.apply()

    aux_after = 1 << 62
