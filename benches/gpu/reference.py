"""What is right, in float64 and by obvious means, and the checks against it. Nothing here uses our kernels.

A check returns a list of sentences; an empty one is a pass.
"""

import torch

PAD = -1


def scores64(x, w, b):
    """Pre-activations of the operands as they are, [n, m]; rounded to f32 once, as a kernel that made no error would."""
    return (x.double() @ w.double().T + b.double()[None]).float()


def select(scores, k, relu=True):
    """(values, indices, lengths): the k largest positive of each row, descending, ties by the lowest index; NaN and -inf never."""
    n, m = scores.shape
    able = scores > (0.0 if relu else float("-inf"))
    keyed = torch.where(able, scores, torch.full_like(scores, float("-inf")))
    values, indices = torch.sort(keyed, dim=1, descending=True, stable=True)
    if m < k:
        values = torch.cat([values, values.new_full((n, k - m), float("-inf"))], 1)
        indices = torch.cat([indices, indices.new_full((n, k - m), PAD)], 1)
    values, indices = values[:, :k], indices[:, :k]
    none = values == float("-inf")
    lengths = (~none).sum(1)
    return values.masked_fill(none, 0.0), indices.masked_fill(none, PAD).int(), lengths.int()


def select_batch(scores, total):
    """(rows, indices, values) of the `total` largest positive; ties: the lowest (row, index). In (row, descending) order."""
    m = scores.shape[1]
    flat = torch.where(scores > 0, scores, torch.zeros_like(scores)).flatten()
    values, at = torch.sort(flat, descending=True, stable=True)
    kept = (values[:total] > 0).nonzero().flatten()
    values, at = values[kept], at[kept]
    rows = torch.div(at, m, rounding_mode="floor")
    order = torch.sort(rows, stable=True).indices
    return rows[order], (at % m)[order], values[order]


def same_codes(name, got, want):
    """Equal to the bit: for inputs whose sums are exact in f32 in any order."""
    faults = []
    for what, a, b in zip(("values", "indices", "lengths"), got, want):
        a, b = a.to(b.device), b
        if a.dtype.is_floating_point:
            unequal = (a != b) | a.isnan()
        else:
            unequal = a != b
        if unequal.any():
            at = unequal.nonzero()[0].tolist()
            rows = unequal.reshape(unequal.shape[0], -1).any(1).sum().item()
            faults.append(f"{name}: {what} of {rows} of {len(a)} rows; first at {at}: {a[tuple(at)].item()} for {b[tuple(at)].item()}")
    return faults


def tolerance(x, w, scores):
    """Per row: what f32 sums of d products in any order may be off by, tensor cores truncating."""
    d = x.shape[1]
    spread = x.double().norm(dim=1) * w.double().norm(dim=1).max() / d ** 0.5
    return (1e-5 * max(1.0, (d / 64) ** 0.5) * torch.maximum(spread, scores.abs().amax(1).double())).float()


def near_codes(name, got, scores, k, tol, relu=True):
    """The set may differ only where scores differ by less than `tol` [n] from the k-th; order, padding and values as they should be.
    Returns (faults, near ties)."""
    values, indices, lengths = got
    n, m = scores.shape
    faults, floor = [], 0.0 if relu else float("-inf")
    exact, chosen, count = select(scores, k, relu)
    valid = indices != PAD
    inside = (indices >= 0) & (indices < m)
    if (valid & ~inside).any():
        return [f"{name}: indices outside 0..{m}"], 0
    position = torch.arange(k, device=indices.device)[None]
    if not torch.equal(valid, position < lengths[:, None]) or (values[~valid] != 0).any():
        faults.append(f"{name}: padding does not begin where the length says")
    own = scores.gather(1, indices.clamp(min=0).long())
    off = (values - own).abs()
    bad = valid & ~(off <= tol[:, None])
    if bad.any():
        faults.append(f"{name}: {bad.sum().item()} values off by up to {off[valid].max().item():.2e} (tolerance {tol.max().item():.2e})")
    falling = (values[:, 1:] < values[:, :-1]) | ((values[:, 1:] == values[:, :-1]) & (indices[:, 1:] > indices[:, :-1]))
    if (~falling & valid[:, 1:]).any():
        faults.append(f"{name}: rows are not sorted by value, then index")
    hits = torch.zeros(n, m + 1, dtype=torch.bool, device=scores.device)
    hits.scatter_(1, torch.where(valid, indices.long(), m), True)
    hits = hits[:, :m]
    if hits.sum(1).ne(valid.sum(1)).any():
        faults.append(f"{name}: an index twice in a row")
    kth = torch.where(count == k, exact[:, -1], torch.full_like(tol, floor))
    missing = (scores > (kth + tol)[:, None]) & ~hits & (scores > floor)
    extra = hits & ~(scores >= (kth - tol)[:, None])
    if missing.any() or extra.any():
        faults.append(f"{name}: {missing.sum().item()} codes missing, {extra.sum().item()} too many, beyond the tolerance")
    wanted = torch.zeros(n, m + 1, dtype=torch.bool, device=scores.device)
    wanted.scatter_(1, torch.where(chosen != PAD, chosen.long(), m), True)
    return faults, (wanted[:, :m] & ~hits).sum().item()


def rel(a, b):
    """||a - b|| / ||b|| in f64; infinite where anything is not finite."""
    a, b = a.double().flatten(), b.to(a.device).double().flatten()
    value = (a - b).norm() / b.norm().clamp(min=1e-300)
    return value.item() if value.isfinite() else float("inf")


def close(name, got, want, limit):
    value = rel(got, want)
    return [] if value < limit else [f"{name}: relative error {value:.2e}, limit {limit:.0e}"]


class Coder64:
    """A top-k coder in float64 with gradients by autograd and torch's Adam, selecting what it is told to select."""

    def __init__(self, w_enc, b_enc, w_dec, b_dec, lr, betas, eps, unit_norm=True):
        self.parameters = [t.detach().double().clone().requires_grad_() for t in (w_enc, b_enc, w_dec, b_dec)]
        self.start = [p.detach().clone() for p in self.parameters]
        self.adam = torch.optim.Adam(self.parameters, lr=lr, betas=betas, eps=eps)
        self.unit_norm = unit_norm

    def backward(self, x, indices, aux=None):
        """Gradients in .grad (the decoder's without its parallel part), {value gradients, norm, loss, codes, error}. `aux`: (indices,
        coefficient) of AuxK, which decodes them onto the error, relative to the error's spread."""
        w_enc, b_enc, w_dec, b_dec = self.parameters
        self.adam.zero_grad()
        x = x.double()
        valid, at = indices != PAD, indices.clamp(min=0).long()
        pre = torch.einsum("nkd,nd->nk", w_enc[at], x - b_dec) + b_enc[at]
        values = torch.where(valid, pre, torch.zeros_like(pre))
        values.retain_grad()
        error = torch.einsum("nk,nkd->nd", values, w_dec[at]) + b_dec - x
        loss, total = error.square().mean(), None
        if aux:
            dead, coef = aux
            valid_dead, at_dead = dead != PAD, dead.clamp(min=0).long()
            pre = torch.einsum("nkd,nd->nk", w_enc[at_dead], x - b_dec) + b_enc[at_dead]
            left = error.detach()
            missed = torch.einsum("nk,nkd->nd", pre * valid_dead, w_dec[at_dead]) + left
            total = loss + coef * missed.square().sum() / (left - left.mean(0)).square().sum()
        (loss if total is None else total).backward()
        if self.unit_norm:
            along = (w_dec.grad * w_dec.detach()).sum(1, keepdim=True)
            w_dec.grad -= along * w_dec.detach()
        norm = torch.stack([p.grad.square().sum() for p in self.parameters]).sum().sqrt()
        return dict(values=values.grad * valid, norm=norm.item(), loss=loss.item(), codes=values.detach(), error=error.detach())

    def step(self, clip, norm):
        if clip and norm > clip:
            for p in self.parameters:
                p.grad *= clip / norm
        self.adam.step()
        if self.unit_norm:
            with torch.no_grad():
                w_dec = self.parameters[2]
                w_dec /= w_dec.norm(dim=1, keepdim=True)


# Byte counts, for rooflines

def decode_bytes(n, k, d, element):
    """Rows gathered, codes read, f32 rows written."""
    return n * k * d * element + n * k * 8 + n * d * 4


def update_seconds(n, k, d, m, bandwidth, l2):
    """Floor of backward + Adam + renormalisation: 26 bytes per parameter from memory, and a bf16 row of the gradient and one of x per code
    from L2. (The kernels gather twice, once for the norm: that is part of what is measured.)"""
    return 26 * 2 * d * m / bandwidth + 2 * n * k * d * 2 / l2
