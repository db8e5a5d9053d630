"""A dictionary of a million latents at d 4096 on one GPU: does it train, how fast, in how much memory."""

import time

import torch

import timing
from training import Step


def run(e, report, hopper, n=8192, k=64, d=4096, m=1 << 20):
    if torch.cuda.is_available():
        report.number("mem.free_gb", torch.cuda.mem_get_info()[0] / 1e9)
    key = f"mem.{n}.{k}.{d}.{m}"

    def go():
        w_dec = torch.empty(m, d, device=e.device).normal_()
        for first in range(0, m, 1 << 16):
            part = w_dec[first:first + (1 << 16)]
            part /= part.norm(dim=1, keepdim=True)
        step = Step(e, n, k, w_dec.clone(), torch.zeros(m, device=e.device), w_dec, torch.zeros(d, device=e.device), own=True)
        step.x.normal_()
        step.run()
        return step

    bytes_, step = timing.peak(go)
    report.number(f"{key}.peak", bytes_)
    timing.settle()
    times = []
    for _ in range(3):
        step.x.normal_()
        timing.settle()
        begin = time.perf_counter()
        step.run()
        timing.settle()
        times.append(1e3 * (time.perf_counter() - begin))
    report.number(f"{key}.merge", sorted(times)[1])
    finite = e.read(step.norm).isfinite().item() and e.read(step.bad).item() == 0 and (e.read(step.rows.lengths) == k).all().item()
    report.check("a million latents: finite gradients, full rows", [] if finite else ["norm, bad steps or lengths"], "v1")
