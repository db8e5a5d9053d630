"""Matching pursuit of 32 steps: right, and how long beside the dense way in tf32. Milliseconds under pursuit.D.M.N.WHO."""

import torch

import cases
import pursuit
import timing
from launch import cast


def checks(e, report, shapes, steps=8):
    for seed, shape in enumerate(shapes):
        for gram in (True, False):
            if not report.attempt(f"pursuit {shape} {'by Gram' if gram else 'by atoms'}", "pursuit",
                                  lambda: pursuit.check(e, shape, steps, gram, seed, cases.matrices)):
                return False
    return True


def run(e, report, n=8192, d=2304, m=65536, steps=32, shapes=((3, 72, 1000, 0), (130, 200, 5000, 0), (64, 768, 24576, 0))):
    if not checks(e, report, shapes):
        return
    key = f"pursuit.{d}.{m}.{n}"
    atoms = torch.randn(m, d, device=e.device)
    atoms /= atoms.norm(dim=1, keepdim=True)
    x = torch.randn(n, d, device=e.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    report.number(f"{key}.eager", timing.median([lambda: pursuit.eager(x, atoms, steps)], 0.1, 1)[0])
    torch.backends.cuda.matmul.allow_tf32 = False
    products = e.empty(m, m)
    with e.record() as build:
        e.product(atoms, atoms, products)
    report.number(f"{key}.build_gram", timing.median([build], 0.1, 1)[0])
    for who, gram in (("gram", True), ("atoms", False)):
        room = pursuit.Pursuit(e, n, d, m, steps, gram)
        half, norms = e.empty(m, d, dtype=torch.bfloat16), e.empty(m, 2)
        cast(e, atoms, half=half, norms=norms)
        with e.record() as program:
            room.run(x, atoms, products if gram else None, half, norms)
        report.number(f"{key}.{who}", timing.median([program], 0.2, 1)[0])
        taken = e.read(room.states)
        report.write(note=f"{key}.{who}: steps taken {(taken & 0x7FFFFFFF).min().item()} .. {(taken & 0x7FFFFFFF).max().item()}")
