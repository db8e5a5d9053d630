"""Matching pursuit: the launches of src/kernels/cuda/pursuit.rs for rows that all take all of their steps, so that no host decides which go
on. Picks the largest positive inner product."""

import torch

from launch import Merge, cast, ceil, up, warps

REFRESH, SHARED, SCRATCH = 32, 95 << 10, 64 << 20


def block_rows(n, m):
    """Rows whose products with all atoms are held at once."""
    return max(min(SCRATCH // 4 // max(m, 1), n, SCRATCH // 4 // 1024), 1)


class Pursuit:
    """`gram`: inner products are updated by rows of the Gram matrix; else all atoms are met at each step, bf16 screening, f64 deciding."""

    def __init__(self, e, n, d, m, steps, gram):
        if gram and steps > REFRESH:
            raise ValueError(f"{steps} steps need fresh products in between")
        self.e, self.n, self.d, self.m, self.steps, self.gram = e, n, d, m, steps, gram
        self.size = min(block_rows(n, m) if gram else SCRATCH // 4 // 1024, n)
        ints = lambda *shape: e.empty(*shape, dtype=torch.int32)
        self.indices, self.values, self.residual = ints(n, steps), e.empty(n, steps), e.empty(n, d)
        self.states, self.floors = ints(n), e.empty(n)
        self.rows, self.live = e.put(torch.arange(self.size, dtype=torch.int32)), e.empty(self.size, d)
        if gram:
            self.products = e.empty(self.size, m)
        else:
            self.half, self.norms = e.empty(self.size, d, dtype=torch.bfloat16), e.empty(self.size, 2)
            self.bad, self.best = e.zeros(1, dtype=torch.int32), e.empty(self.size, dtype=torch.int64)
            self.zero_bias = e.zeros(m)
            self.merges = {}

    def threads(self):
        return min(max(up(ceil(self.d, 8), 32), 32), 512)

    def run(self, x, atoms, gram=None, atoms_half=None, atoms_norms=None):
        for first in range(0, self.n, self.size):
            self.block(x[first:first + self.size], first, atoms, gram, atoms_half, atoms_norms)
        self.e.do(lambda: self.e.read(self.states))

    def block(self, x, first, atoms, gram, atoms_half, atoms_norms):
        e, n, d, threads = self.e, len(x), self.d, self.threads()
        part = slice(first, first + n)
        place = dict(residuals=self.residual[part], indices=self.indices[part], values=self.values[part], states=self.states[part],
                     floors=self.floors[part])
        rule = dict(steps=self.steps, pick=0, stop_on_repeat=0)
        e.launch("pursuit_start", n, threads, x=x, d=d, steps=self.steps, tolerance=0.0, relative=0, **place)
        if gram is not None:
            self.gather(n, place, threads)
            e.product(self.live[:n], atoms, self.products[:n])
            fits = 4 * self.m <= SHARED
            kernel = ("pursuit_gram" if self.m % 4 == 0 else "pursuit_gram_odd") if fits else "pursuit_gram_wide"
            wide = max(threads, min(max(up(ceil(self.m, 16), 32), 32), 512))
            e.launch(kernel, n, wide, 4 * self.m if fits else 0, products=self.products, atoms=atoms, gram=gram, rows=self.rows, m=self.m, d=d,
                     burst=REFRESH, **rule, **place)
            return
        if n not in self.merges:
            self.merges[n] = Merge(e, n, d, self.m, 1, True)
        merge = self.merges[n]
        for _ in range(self.steps):
            self.gather(n, place, threads)
            cast(e, self.live[:n], half=self.half[:n], norms=self.norms[:n], bad=self.bad)
            merge.exact_lists(self.live[:n], atoms, self.zero_bias, self.half[:n], atoms_half, self.norms[:n], atoms_norms)
            grid, width = warps(n)
            e.launch("pursuit_listed", grid, width, lists=merge.entries, counts=merge.counts, n=n, cap=merge.cap, best=self.best)
            e.launch("pursuit_step", n, threads, best=self.best, atoms=atoms, rows=self.rows, d=d, **rule, **place)

    def gather(self, n, place, threads):
        self.e.launch("pursuit_gather", n, threads, residuals=place["residuals"], rows=self.rows, d=self.d, to=self.live)


def check(e, shape, steps, gram, seed, make):
    """Each pick is the largest product with what is left in float64, but for near ties; values and residuals are float64's."""
    n, d, m, _ = shape
    x, _, _, atoms, _ = (e.put(t) for t in make(n, d, m, seed, e.device))
    pursuit = Pursuit(e, n, d, m, steps, gram)
    if gram:
        products = e.empty(m, m)
        e.product(atoms, atoms, products)
        pursuit.run(x, atoms, products)
    else:
        half, norms = e.empty(m, d, dtype=torch.bfloat16), e.empty(m, 2)
        cast(e, atoms, half=half, norms=norms)
        pursuit.run(x, atoms, None, half, norms)
    left, wide = x.double(), atoms.double()
    tolerance = (1e-5 if gram else 1e-6) * x.double().norm(dim=1)
    for i in range(steps):
        scores = left @ wide.T
        at = pursuit.indices[:, i].long()
        if (at < 0).any() or (at >= m).any():
            return [f"pursuit {shape}: rows ended, or picked none, at step {i}"]
        picked = scores.gather(1, at[:, None])[:, 0]
        behind = (scores.amax(1) - picked > tolerance).sum().item()
        if behind:
            return [f"pursuit {shape}: step {i} of {behind} rows picks another atom than the best"]
        if not ((pursuit.values[:, i] - picked).abs() <= tolerance).all():
            return [f"pursuit {shape}: coefficients of step {i}"]
        left = left - pursuit.values[:, i].double()[:, None] * wide[at]
    off = ((pursuit.residual - left).norm() / left.norm()).item()
    return [] if off < 1e-5 else [f"pursuit {shape}: residuals are off by {off:.1e}"]


def eager(x, atoms, steps):
    """The dense way, generous: no one-hot codes."""
    left, values, indices = x, [], []
    for _ in range(steps):
        value, at = (left @ atoms.T).max(1)
        left = left - value[:, None] * atoms[at]
        values.append(value)
        indices.append(at)
    return torch.stack(values, 1), torch.stack(indices, 1), left
