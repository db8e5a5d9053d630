"""Inputs for the correctness checks: random ones, and small integers whose sums are exact in f32 in any order, with the rows that upset
selections. Drawn on the device that is asked for: a seed means the same on every GPU, and another thing on a CPU."""

import torch

# (n, d, m, k)
SHAPES = [(1, 64, 256, 16), (3, 72, 1000, 16), (128, 768, 24576, 32), (130, 200, 5000, 64), (257, 2304, 16384, 64), (64, 4096, 65536, 256)]
SIMULATED = [(1, 64, 256, 16), (3, 72, 1000, 16), (5, 200, 700, 64)]
SANITIZED = [(130, 200, 5000, 64)]


def bf16(t):
    return t.to(torch.bfloat16)


def normal(n, d, m, seed, device="cpu"):
    """x, w (unit rows on average), b in f32."""
    g = torch.Generator(device=device).manual_seed(seed)
    x = torch.randn(n, d, generator=g, device=device)
    w = torch.randn(m, d, generator=g, device=device) / d ** 0.5
    b = torch.randn(m, generator=g, device=device) * 0.1
    return x, w, b


def whole(n, d, m, seed, device="cpu", specials=("zero", "negative", "ascending", "NaN", "Inf"), copies=None):
    """Small integers, exact in bf16; equal rows of w; NaN, Inf, negative, zero and ascending rows of x where there are enough."""
    g = torch.Generator(device=device).manual_seed(seed)
    draw = lambda low, high, *shape: torch.randint(low, high + 1, shape, generator=g, device=device).float()
    x, w, b = draw(-2, 2, n, d), draw(-2, 2, m, d), draw(-8, 8, m)
    # Column 0 of w is positive, so that one row of x can make all scores negative; column 1 rises with the latent.
    w[:, 0] = draw(1, 2, m)
    w[:, 1] = (torch.arange(m, device=device) * 64 // m).float()
    x[:, 1] = 0
    copies = torch.randperm(m, generator=g, device=device)[: m // 8 if copies is None else copies]
    w[copies], b[copies] = w[copies[0]].clone(), b[copies[0]].clone()
    rows = torch.randperm(n, generator=g, device=device).tolist()
    for name, row in zip(specials, rows[: max(0, n - 1)]):
        if name == "NaN":
            x[row, d // 2] = float("nan")
        elif name == "Inf":
            # Its column of w has both signs and zeroes: scores of +-infinity, and NaN.
            x[row, 2] = float("inf")
        else:
            x[row] = 0
            x[row, 0] = -256.0 if name == "negative" else 0.0
            x[row, 1] = 16.0 if name == "ascending" else 0.0
    return x, w, b


def few(n, d, m, seed, device="cpu"):
    """Fewer positive scores than k in most rows: padding."""
    x, w, b = whole(n, d, m, seed, device)
    return x, w, b - round(6.0 * d ** 0.5)


def matrices(n, d, m, seed, device="cpu"):
    """A coder and rows near its decoder's directions: (x, w_enc, b_enc, w_dec, b_dec)."""
    g = torch.Generator(device=device).manual_seed(seed)
    w_dec = torch.randn(m, d, generator=g, device=device)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    w_enc = w_dec + 0.3 * torch.randn(m, d, generator=g, device=device) / d ** 0.5
    b_enc, b_dec = 0.02 * torch.randn(m, generator=g, device=device), 0.1 * torch.randn(d, generator=g, device=device)
    active = torch.randint(0, m, (n, 12), generator=g, device=device)
    # One latent fires on most rows: its list is cut into segments.
    active[: n * 3 // 4, 0] = 3 % m
    strength = torch.rand(n, 12, generator=g, device=device) + 0.5
    x = torch.einsum("nk,nkd->nd", strength, w_dec[active]) + 0.1 * torch.randn(n, d, generator=g, device=device) + b_dec
    return x, w_enc, b_enc, w_dec, b_dec
