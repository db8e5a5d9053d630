"""Encodes: cuBLAS alone, torch eager and compiled, ours. Milliseconds under encode.D.M.N.WHO; also what they allocate, and decode alone."""

from pathlib import Path

import torch

import peers
import reference as ref
import timing
from launch import SCRATCH, Batch, Codes, Fused, Merge, cast, row_room
from training import RowCodes, decode

K = 64
# (n, d, m): those that targets name first.
SHAPES = [(8192, 2304, 65536), (8192, 768, 65536), (8192, 4096, 65536), (8192, 768, 24576), (8192, 2304, 24576), (8192, 4096, 24576),
          (4096, 2304, 65536), (16384, 2304, 65536), (8192, 2304, 131072), (8192, 768, 131072), (8192, 4096, 131072)]
SETS = 3


def inputs(e, n, d, m):
    w = torch.randn(m, d, device=e.device).div_(d ** 0.5)
    b = torch.randn(m, device=e.device).mul_(0.05)
    return [torch.randn(n, d, device=e.device) for _ in range(SETS)], w, b


def programs(e, make):
    """One recorded program per input set."""
    made = []
    for i in range(SETS):
        with e.record() as program:
            make(i)
        made.append(program)
    return made


def shape(e, report, n, d, m, hopper, full):
    key = f"encode.{d}.{m}.{n}"

    def measure(who, runs, seconds=0.3):
        try:
            ms, low, high = timing.median(runs, seconds)
            report.number(f"{key}.{who}", ms)
            report.write(spread=f"{key}.{who}", low=low, high=high)
            return ms
        except Exception as error:
            report.note(f"{key}.{who}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            timing.settle()
            return None

    xs, w, b = inputs(e, n, d, m)
    xh, wh, bh = [x.bfloat16() for x in xs], w.bfloat16(), b.bfloat16()
    out = torch.empty(n, m, dtype=torch.bfloat16, device=e.device)
    measure("gemm", [lambda x=x: torch.mm(x, wh.T, out=out) for x in xh])
    del out
    measure("eager", [lambda x=x: peers.encode(x, wh, bh, K) for x in xh])
    if full:
        report.number(f"{key}.eager_bytes", timing.peak(lambda: peers.encode(xh[0], wh, bh, K))[0])
    codes = Codes(e, n, K)
    room = {}

    def ours(who, make, seconds=0.3):
        def build():
            room[who] = make()
        try:
            bytes_, _ = timing.peak(build)
            report.number(f"{key}.{who}_bytes", bytes_ + codes.values.numel() * 8)
            runs = programs(e, lambda i: room[who].run(xh[i], wh, b, codes))
        except Exception as error:
            report.note(f"{key}.{who}: {error}")
            return
        measure(who, runs, seconds)

    ours("merge", lambda: Merge(e, n, d, m, K))
    if hopper:
        ours("hopper", lambda: Fused(e, n, d, m, K, "encode_hopper"))
        if hopper == "pair":
            ours("hopper_pair", lambda: Fused(e, n, d, m, K, "encode_hopper_pair"))
    room.clear()
    if not full:
        return
    ours("ampere", lambda: Fused(e, n, d, m, K, "encode_ampere"), 0.15)
    room.clear()

    # Exact for f32 parameters, rows cast and normed as part of it; the dictionary's copy is made once.
    half, norms = e.empty(m, d, dtype=torch.bfloat16), e.empty(m, 2)
    bad = cast(e, w, half=half, norms=norms)
    exact = Merge(e, n, d, m, K, True)
    row_half, row_norms = e.empty(n, d, dtype=torch.bfloat16), e.empty(n, 2)

    def certified(i):
        cast(e, xs[i], half=row_half, norms=row_norms, bad=bad)
        exact.run_exact(xs[i], w, b, row_half, half, row_norms, norms, codes)

    measure("certified", programs(e, certified))
    taken = e.read(exact.counters).tolist()
    report.number(f"{key}.certified_scored_per_row", taken[0] / n)
    report.number(f"{key}.certified_rows_in_full", taken[1] & 0xFFFFFFFF)
    del exact, half
    torch.backends.cuda.matmul.allow_tf32 = False
    measure("eager_f32", [lambda x=x: peers.encode(x, w, b, K) for x in xs], 0.2)

    width, total = row_room(K, m), n * K
    rows, merge, batch = Codes(e, n, width), Merge(e, n, d, m, width), Batch(e, n, n * K)

    def batched(i):
        merge.run(xh[i], wh, b, rows, batch.guess if batch.guessed else None)
        batch.choose(rows, total, m)

    batched(0)
    measure("batch", programs(e, batched))
    report.write(note=f"{key}.batch: too few, cut = {batch.answer}")
    del rows, merge
    measure("eager_batch", [lambda x=x: peers.encode_batch(x, wh, bh, total) for x in xh], 0.15)


def compiled(e, report, n, d, m):
    """torch.compile, default mode, once per width."""
    xs, w, b = inputs(e, n, d, m)
    xh, wh, bh = [x.bfloat16() for x in xs], w.bfloat16(), b.bfloat16()
    try:
        encode = torch.compile(peers.encode)
        report.number(f"encode.{d}.{m}.{n}.compile", timing.median([lambda x=x: encode(x, wh, bh, K) for x in xh], 0.3)[0])
    except Exception as error:
        report.note(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


def decoding(e, report, n, d, m, carried):
    """Reconstructions alone: bf16 rows by ours, f32 rows by sparsify's Triton."""
    key = f"decode.{d}.{m}.{n}"
    w, b = torch.randn(m, d, device=e.device), torch.randn(d, device=e.device)
    wh, out = w.bfloat16(), e.empty(n, d)
    at = [torch.randint(0, m, (n, K), device=e.device, dtype=torch.int32) for _ in range(SETS)]
    values = torch.rand(n, K, device=e.device)
    runs = programs(e, lambda i: decode(e, wh, b, 0, 1.0, RowCodes(n, at[i], values, K), (0, m), out=out))
    ms = timing.median(runs, 0.2)[0]
    report.number(f"{key}.ours", ms)
    report.number(f"{key}.ours_tbs", ref.decode_bytes(n, K, d, 2) / ms / 1e9)
    path = Path(carried) / "xformers.py"
    if path.is_file():
        bag = peers.load(path).embedding_bag_triton
        wide = [i.long() for i in at]
        report.number(f"{key}.sparsify", timing.median([lambda i=i: bag(i, w, values) for i in wide], 0.2)[0])


def tuning(e, report, variants, hopper, n=8192, m=65536, widths=(768, 2304)):
    """What other settings would give, at two widths."""
    for d in widths:
        xs, w, b = inputs(e, n, d, m)
        xh, wh, codes = [x.bfloat16() for x in xs], w.bfloat16(), Codes(e, n, K)
        del xs, w
        for mib in (16, 32, 128, 268):
            merge = Merge(e, n, d, m, K, scratch=mib << 20)
            ms = timing.median(programs(e, lambda i: merge.run(xh[i], wh, b, codes)), 0.15)[0]
            report.number(f"tune.{d}.merge_scratch_{mib}", ms)
        for name, engine in variants.items() if hopper else ():
            if not name.startswith("bring_up"):
                fused = Fused(engine, n, d, m, K, "encode_hopper")
                ms = timing.median(programs(engine, lambda i: fused.run(xh[i], wh, b, codes)), 0.15)[0]
                report.number(f"tune.{d}.{name}", ms)
        for parts in (1, 2, 4) if hopper else ():
            fused = Fused(e, n, d, m, K, "encode_hopper", parts=parts)
            report.number(f"tune.{d}.hopper_parts_{parts}", timing.median(programs(e, lambda i: fused.run(xh[i], wh, b, codes)), 0.15)[0])


def run(e, report, hopper, variants, carried, left, shapes=SHAPES, compile_too=True):
    report.write(key="encode.scratch_mib", value=SCRATCH >> 20)
    for i, (n, d, m) in enumerate(shapes):
        if left() < 25:
            report.note(f"encode: no time left for {shapes[i:]}")
            return
        shape(e, report, n, d, m, hopper, full=i < 3)
        timing.settle()
        if i == 2:
            widths = [d for _, d, _ in shapes[:3]]
            for width in widths:
                decoding(e, report, n, width, m, carried)
            for width in widths if compile_too else ():
                compiled(e, report, n, width, m)
                timing.settle()
    n, _, m = shapes[0]
    tuning(e, report, variants, hopper, n, m, sorted({d for _, d, _ in shapes})[:2])
