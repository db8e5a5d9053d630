"""All of the measurement that can run without a GPU: plans of every launch, declarations against the simulator, the correctness checks on
the simulated kernels (also through a stand-in for the driver), faults planted to see that the checks find them, the peers' glue on the CPU,
and the verdicts on made-up times."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import cases
import declarations
import peers
import reference as ref
import report as reports
import targets
from driver import Blas, Cuda, Gpu, Mirrored
from engine import Planned, Simulated, build_simulator
from launch import Batch, Codes, Fused, Merge, chunk, finish_shape, fused_cap, row_room, splits
from sections import correct, encode, mem, step
from training import RowCodes, Step, block, decode

LETTERS = {"u32": "u", "i32": "i", "u64": "U", "f32": "f", "TensorMap": "m"}


def planned(declared):
    """[(title, engine)] of everything that would be launched and timed."""
    done = []

    def plan(title, work):
        e = Planned(declared)
        work(e)
        done.append((title, e))

    for n, d, m in encode.SHAPES:
        k = encode.K

        def operands(e):
            return e.empty(n, d, dtype=torch.bfloat16), e.empty(m, d, dtype=torch.bfloat16), e.empty(m)

        size = f"n={n} d={d} m={m} k={k}"
        plan(f"encode v1 {size}", lambda e: Merge(e, n, d, m, k).run(*operands(e), Codes(e, n, k)))
        for kernel in ("encode_hopper", "encode_hopper_pair", "encode_ampere"):
            plan(f"{kernel} {size}", lambda e: Fused(e, n, d, m, k, kernel).run(*operands(e), Codes(e, n, k)))
        plan(f"certified {size}", lambda e: Merge(e, n, d, m, k, True).run_exact(
            e.empty(n, d), e.empty(m, d), e.empty(m), *operands(e)[:2], e.empty(n, 2), e.empty(m, 2), Codes(e, n, k)))

        def batched(e):
            rows, batch = Codes(e, n, row_room(k, m)), Batch(e, n, n * k)
            Merge(e, n, d, m, row_room(k, m)).run(*operands(e), rows)
            batch.choose(rows, n * k, m)

        plan(f"batch {size}", batched)
        plan(f"decode {size}", lambda e: decode(e, operands(e)[1], e.empty(d), 0, 1.0, RowCodes(
            n, e.empty(n, k, dtype=torch.int32), e.empty(n, k), k), (0, m), out=e.empty(n, d)))

    def steps(n, k, d, m, **settings):
        def work(e):
            s = Step(e, n, k, e.empty(m, d), e.empty(m), e.empty(m, d), e.empty(d), own=True, **settings)
            if s.aux:
                s.aux.dead = lambda *_: m // 4
            s.run()
        plan(f"step n={n} k={k} d={d} m={m} {settings or ''}", work)

    for shape in step.SHAPES:
        for settings in ({}, {"encoder": "encode_hopper"}, {"precision": "certified"}, {"choice": "batch"}, {"aux": (1 / 32, 512)}):
            steps(*shape, **settings)
    steps(8192, 64, 4096, 1 << 20)
    return done


def plan(options):
    declared = declarations.load(options.carried)
    for title, e in planned(declared):
        print(f"# {title}: {len(e.out)} launches, {e.allocated / 1e6:,.0f} MB allocated")
        last, count = None, 0
        for line in e.out + [None]:
            name = line and line.split(" ")[0]
            if name != last:
                if count > 1:
                    print(f"    .. {count - 1} more of {last}")
                if line:
                    print(f"  {line}")
                last, count = name, 0
            count += 1
    return 0


class Faulty(Simulated):
    """The simulator with one launch's outcome or argument spoilt."""

    fault = None

    def launch(self, kernel, grid, threads, shared=0, **args):
        before, after = self.fault
        if before:
            before(kernel, args)
        super().launch(kernel, grid, threads, shared, **args)
        if after:
            after(kernel, args)


def spoil(kernel, name, how):
    def after(launched, args):
        if launched == kernel:
            how(args[name])
    return None, after


def change(kernel, name, how):
    def before(launched, args):
        if launched.startswith(kernel):
            args[name] = how(args[name])
    return before, None


def nudge(t):
    t.view(-1)[0] *= 1.001


def swap(t):
    t[0, [0, 1]] = t[0, [1, 0]]


def bump(t):
    t.view(-1)[3] += 1


FAULTS = {
    "a value off by a thousandth": ("encode", spoil("finish", "values", nudge)),
    "two codes in the wrong order": ("encode", spoil("finish", "indices", swap)),
    "another index": ("encode", spoil("finish", "indices", bump)),
    "a length": ("encode", spoil("finish", "nnz", lambda t: t.sub_(1))),
    "columns left out": ("encode", change("merge_topk", "columns", lambda c: c - 40)),
    "ties by the highest index": ("ties", spoil("finish", "indices", lambda t: t.copy_(torch.where(t >= 0, t ^ 1, t)))),
    "too tight a bound": ("certified", change("merge_certified", "sum", lambda s: -2.0)),
    "gradients twice as large": ("step", change("update", "a_scale", lambda s: 2 * s)),
    "no projection": ("step", change("update", "parallel", lambda p: torch.zeros_like(p))),
    "another beta": ("step", change("update", "beta2", lambda b: 0.9)),
    "no correction of the bias": ("step", change("update", "root", lambda r: 1.0)),
    "no renormalisation": ("step", change("update", "unit_norm", lambda u: 0)),
    "b_dec without what centring carries back": ("step", change("column_finish", "factor", lambda f: 0.0 if f == -1.0 else f)),
    "a silence that is not counted": ("step", change("update", "silent", lambda s: None)),
    "entries in another order": ("step", spoil("columns_sort", "values", lambda t: t[:2].copy_(t[:2].flip(0) + 1))),
    "no clipping": ("step", change("clip_factor", "limit", lambda c: 0.0)),
    "AuxK's scale": ("aux", change("aux_scale", "coef", lambda c: 2 * c)),
    "AuxK among the living": ("aux", change("dead_list", "after", lambda a: 0)),
}


def planted(declared, library, report):
    """Each fault must be found."""
    for name, (where, fault) in FAULTS.items():
        e = Faulty(declared, library)
        e.fault = fault
        quiet = reports.Report("/dev/null", "planted", quiet=True)
        quiet.check = lambda n, faults, group, **more: setattr(quiet, "failed", quiet.failed + bool(faults))
        shape = (3, 72, 1000, 16)
        if where in ("encode", "ties"):
            correct.encode_checks(e, quiet, "merge", "v1", shape, 1)
        elif where == "certified":
            correct.encode_checks(e, quiet, "certified", "certified", shape, 1)
        elif where == "step":
            correct.gradient_checks(e, quiet, (20, 72, 300, 16), 1, "f32")
        else:
            correct.aux_checks(e, quiet, (20, 72, 300, 16), 1, "f32")
        report.check(f"planted: {name}", [] if quiet.failed else ["nothing noticed it"], "self")


def fake_gpu(declared, library):
    """The driver's code over the stand-in, tensors on the CPU."""

    class Fake(Gpu):
        device, hopper = "cpu", True

        def __init__(self):
            super(Gpu, self).__init__(declared)
            self.open(Cuda(library), lambda: Blas(library, "cpu"), "any", True)

        def stream(self):
            return 0

    return Fake()


STUBS = {
    "xformers.py": "import torch\ndef xformers_embedding_bag(i, w, v):\n"
                   "    return torch.nn.functional.embedding_bag(i, w, per_sample_weights=v, mode='sum')\n"
                   "embedding_bag_triton = xformers_embedding_bag\n",
    "fused_encoder.py": "import torch, torch.nn.functional as F\ndef fused_encoder(x, w, b, k, a):\n    p = F.relu(F.linear(x, w, b))\n"
                        "    return (*torch.topk(p, k, dim=-1, sorted=False), p)\n",
    "openai_kernels.py": "import torch\nclass TritonDecoderAutograd:\n    @staticmethod\n    def apply(i, v, w):\n"
                         "        return torch.einsum('nk,nkd->nd', v, w.T[i])\n"
                         "def triton_sparse_transpose_dense_matmul(i, v, x, N):\n    out = torch.zeros(N, x.shape[1])\n"
                         "    return out.index_add_(0, i.flatten(), (v[:, :, None] * x[:, None]).reshape(-1, x.shape[1]))\n"
                         "def triton_add_mul_(x, a, b, c):\n    x += a[None] * b * c\n",
}


def peers_agree(report, folder):
    """All peers make the step that float64 makes, with stand-ins for their kernels: what is timed is the same work."""
    for name, text in STUBS.items():
        (folder / name).write_text(text)
    found, absent = peers.trainers(folder)
    n, d, m, k = 30, 64, 200, 8
    x, *coder = cases.matrices(n, d, m, 5)
    coder[1] += 1.0  # all of the k largest are positive
    for who, (kind, first) in found.items():
        trainer = kind(*first, *[t.clone() for t in coder], k)
        want = ref.Coder64(*coder, 1e-3, (0.9, 0.999), 1e-8)
        loss = trainer.forward(x)
        scores = (x - coder[3]) @ coder[0].T + coder[1]
        told = want.backward(x, torch.topk(scores, k).indices.int())
        trainer.backward(loss)
        want.step(0, 0)
        faults = ref.close("loss", loss.detach(), torch.tensor(told["loss"]), 1e-5)
        for name, ours, theirs, start in zip(("W_enc", "b_enc", "W_dec", "b_dec"), trainer.parameters, want.parameters, want.start):
            faults += ref.close(name, ours.detach().double() - start, theirs.detach() - start, 1e-3)
        report.check(f"peer {who} makes float64's step", faults, "self")
    report.check("all peers load", absent, "self")


def verdicts(report):
    """Times as predicted pass everything, times ten times as long fail all ratios."""
    predicted = {}
    for d, eager, v1, v2, gemm in ((768, 6.0, 2.36, 1.34, 1.13), (2304, 8.25, 4.72, 3.68, 3.4), (4096, 10.9, 7.48, 6.37, 6.0)):
        for m in (24576, 65536):
            f = m / 65536
            whole = dict(eager=eager, merge=v1, hopper=v2, gemm=gemm, certified=7, eager_f32=60, batch=v1 * 1.03, eager_batch=v1 * 3.5)
            for who, ms in whole.items():
                predicted[f"encode.{d}.{m}.8192.{who}"] = ms * f
        predicted |= {f"encode.{d}.65536.8192.{who}_bytes": v for who, v in dict(merge=1e8, hopper=8e7, eager=3.3e9).items()}
    for d, dense, sparsify, openai, v1, v2 in ((768, 15.7, 10, 9.5, 4, 3), (2304, 32, 20.3, 19.1, 9.4, 8.3), (4096, 50.9, 32.4, 30.3, 15.7, 14.6)):
        of = dict(dense=dense, sparsify=sparsify, openai=openai, merge=v1, hopper=v2, sparsify_backward=10.5, merge_backward=3.4, floor_ms=2.5)
        predicted |= {f"step.8192.64.{d}.65536.{who}": ms for who, ms in of.items()}
    predicted |= {"step.8192.64.2304.65536.merge_peak": 4.6e9, "step.8192.64.2304.65536.dense_activations": 6e9,
                  "step.8192.64.2304.65536.merge_activations": 2.5e8, "mem.8192.64.4096.1048576.merge": 184.0, "probe.copy_tbs": 4.3,
                  "decode.2304.65536.8192.ours_tbs": 3.5, "decode.2304.65536.8192.ours": 0.6, "decode.2304.65536.8192.sparsify": 1.4}
    checks = [dict(group=g, faults=[], check="c") for g in ("v1", "certified", "ampere", "hopper", "hopper_pair", "memcheck", "racecheck", "rust")]
    rows = targets.rows(predicted, checks)
    # Its two tightest rows at d=4096 miss by a rounding of the predictions themselves.
    close = {"step v2 / openai, d=4096", "step v2 / dense eager, d=4096"}
    silent = [r.what for r in rows if r.value is None and r.number not in (15, 17)]
    failed = [f"{r.what} {r.value}" for r in rows if r.verdict() == "FAIL" and r.what not in close]
    report.check("every target has a figure behind it", silent, "self")
    report.check("the plan's predictions pass", failed, "self")
    own = ("merge", "hopper", "certified", "batch", "ours", "merge_backward")
    slow = {k: v * (10 if k.rsplit(".", 1)[1] in own else 1) for k, v in predicted.items()}
    passed = [r.what for r in targets.rows(slow, checks) if r.number in (1, 2, 3, 4, 5, 8, 9, 10, 11, 13) and r.verdict() != "FAIL"]
    report.check("ten times slower fails", passed, "self")
    bad = [dict(c, faults=["x"]) for c in checks]
    report.check("a failed check fails its row", [r.what for r in targets.rows(predicted, bad) if r.number == 16 and r.verdict() != "FAIL"], "self")
    lines = targets.table(predicted | {"probe.device": "d", "flow.host": 1.0}, checks, [("probe", "done", 1)])
    report.check("the table has at most 60 lines", [] if len(lines) <= 60 else [f"{len(lines)}"], "self")
    print("\n".join(lines))


def formulas(report):
    """Against what kernels/README.md and the library's tests say."""
    faults = []
    for d, threads in ((64, 32), (128, 32), (768, 96), (2304, 288), (4096, 512), (8192, 1024)):
        faults += [] if block([d], 4) == (threads, False) else [f"block of {d}"]
    faults += [] if [splits(n, 65536, 132) for n in (4096, 8192, 16384)] == [4, 2, 1] else ["splits"]
    faults += [] if (chunk(8192, 65536), chunk(16384, 65536), chunk(1, 100)) == (2048, 1024, 256) else ["chunk"]
    faults += [] if (finish_shape(64), finish_shape(2048)) == ((512, 8), (2080, 5)) else ["finish"]
    faults += [] if (fused_cap(64, 64), fused_cap(32, 64)) == (136, 104) else ["cap"]
    report.check("formulas", faults, "self")


def timed(e, report, folder):
    """The sections that time, at toy sizes and through the stand-in: that they run and leave the figures that the verdicts want."""
    told = reports.Report(folder / "timed.jsonl", "timed", quiet=True)
    encode.run(e, told, "yes", {"lag_1": e.variant("any")}, folder, lambda: 100, [(20, d, 512) for d in (64, 72, 128)], False)
    step.run(e, told, "yes", folder, lambda: 100, [(20, 8, d, 320) for d in (64, 72, 128)], m=256, rows=2, context=8, layers=1)
    mem.run(e, told, "", 20, 8, 64, 320)
    numbers, checks, notes = reports.read(folder / "timed.jsonl")
    widths = {"64": "2304", "72": "768", "128": "4096"}

    def scaled(key):
        kind, *words = key.split(".")
        if kind == "mem":
            return f"mem.8192.64.4096.1048576.{words[-1]}"
        if kind in ("encode", "decode") and words[0] in widths:
            return ".".join([kind, widths[words[0]], "65536", "8192", *words[3:]])
        return f"step.8192.64.{widths[words[2]]}.65536.{words[4]}" if kind == "step" else key

    # The fake counts no memory; no d = 24576 was run.
    rows = targets.rows({scaled(k): 1.0 if k.endswith(("_bytes", "_peak", "_activations")) else v for k, v in numbers.items()}, checks)
    absent = [r.what for r in rows if r.value is None and r.number not in (15, 16, 17)]
    report.check("timed sections leave what the verdicts want", absent + [n["note"] for n in notes if "Error" in n.get("note", "")], "self")
    report.check("timed sections found no fault", [c["check"] for c in checks if c["faults"]], "self")


def run(options):
    begin = time.monotonic()
    declared = declarations.parse(declarations.preprocess())
    scratch = Path(options.carried)
    scratch.mkdir(parents=True, exist_ok=True)
    library = build_simulator(declarations.REPOSITORY, scratch)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        report = reports.Report(folder / "results.jsonl", "self")
        e = Simulated(declared, library)
        letters = {k: "".join("p" if pointer else LETTERS[kind] for _, kind, pointer in p) for k, p in declared.items()}
        differ = [f"{k}: {letters[k]}, simulator {e.letters(k)}" for k in letters if e.letters(k) != letters[k] and k != "encode_hopper_pair"]
        report.check(f"declarations of {len(declared)} kernels against the simulator's", differ, "self")
        formulas(report)
        report.check("every launch can be planned", [] if len(planned(declared)) > 50 else ["too few"], "self")
        verdicts(report)
        peers_agree(report, folder)
        planted(declared, library, report)
        small, steps = cases.SIMULATED, [(20, 72, 300, 16), (400, 64, 300, 8)]
        for schedule in (0, 12345):
            e = Simulated(declared, library, schedule)
            correct.run(e, report, small, steps if schedule == 0 else steps[:1])
            correct.run_hopper(e, report, None, small[:2], steps[:1])
        fake = folder / "libcuda.so.1"
        flags = "-std=c++17 -O2 -w -ffp-contract=off -fPIC -shared -I kernels benches/gpu/fake_driver.cpp".split()
        subprocess.run(["g++", *flags, "-o", str(fake)], cwd=declarations.REPOSITORY, check=True)
        driven = fake_gpu(declared, fake)
        with driven.record() as program:
            pass
        program()
        correct.run(driven, report, small[1:2], steps[:1])
        correct.run_hopper(driven, report, None, small[1:2], steps[:1])
        correct.run(Mirrored(declared, "any", fake), report, small[1:2], steps[:1])
        timed(driven, report, folder)
        print(f"{'FAILED' if report.failed else 'ok'}: {report.failed} of the checks failed, {time.monotonic() - begin:.0f} s")
        return 1 if report.failed else 0
