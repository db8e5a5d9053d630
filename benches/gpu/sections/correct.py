"""Every kernel against float64: encodes, batch selections, thresholds, decode, gradients, Adam, AuxK. Runs on any engine."""

import torch

import cases
import reference as ref
from engine import At
from launch import Batch, Codes, Fused, Merge, ceil, finish, row_room, summing, warps
from training import Aux, Step


def found(codes):
    return codes.values, codes.indices, codes.lengths


def encoder(e, kind, n, d, m, k, **more):
    """A function (x, w, b as f32) -> codes, and whether operands are rounded to bf16."""
    codes = Codes(e, n, k)
    if kind == "certified":
        merge = Merge(e, n, d, m, k, True)

        def run(x, w, b):
            half = []
            for t in (x, w):
                h, norms = e.empty(*t.shape, dtype=torch.bfloat16), e.empty(len(t), 2)
                grid, threads = warps(len(t))
                e.launch("cast_rows", grid, threads, x=t, b=None, n=len(t), d=d, full=None, half=h, norms=norms,
                         bad=e.zeros(1, dtype=torch.int32))
                half.append((h, norms))
            (xh, xn), (wh, wn) = half
            merge.run_exact(x, w, b, xh, wh, xn, wn, codes)
            return found(codes)

        return run, False
    if kind in ("merge", "merge_f32"):
        merge = Merge(e, n, d, m, k, **more)
    else:
        merge = Fused(e, n, d, m, k, kind, **more)

    def run(x, w, b):
        operands = (x, w) if kind == "merge_f32" else (cases.bf16(x), cases.bf16(w))
        merge.run(*operands, b, codes)
        return found(codes)

    return run, kind != "merge_f32"


def encode_checks(e, report, kind, group, shape, seed, **more):
    n, d, m, k = shape
    label = f"{kind} {shape}" + "".join(f" {a}={b}" for a, b in more.items())

    def exact(make):
        def work():
            x, w, b = (e.put(t) for t in make(n, d, m, seed, e.device))
            run, _ = encoder(e, kind, n, d, m, k, **more)
            return ref.same_codes(label, run(x, w, b), ref.select(ref.scores64(x, w, b), k))
        return work

    def near():
        x, w, b = (e.put(t) for t in cases.normal(n, d, m, seed + 1, e.device))
        run, rounded = encoder(e, kind, n, d, m, k, **more)
        first = tuple(t.clone() for t in run(x, w, b))
        again, _ = encoder(e, kind, n, d, m, k, **more)
        second = again(x, w, b)
        operands = (cases.bf16(x), cases.bf16(w)) if rounded else (x, w)
        scores = ref.scores64(*operands, b)
        # The certified values are those of float64, rounded once.
        tol = scores.abs().amax(1) * 2.0 ** -23 if kind == "certified" else ref.tolerance(*operands, scores)
        faults, ties = ref.near_codes(label, first, scores, k, tol)
        if kind == "certified" and ties:
            faults.append(f"{label}: {ties} codes are not the float64 set's")
        if not all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(first, second)):
            faults.append(f"{label}: two runs differ")
        return faults, dict(near_ties=ties)

    ok = report.attempt(f"{label} integers", group, exact(cases.whole))
    ok = ok and report.attempt(f"{label} few positive", group, exact(cases.few))
    return ok and report.attempt(f"{label} normal", group, near)


def batch_checks(e, report, shape, seed):
    n, d, m, k = shape

    def work():
        x, w, b = (e.put(t) for t in cases.whole(n, d, m, seed, e.device, specials=("zero", "NaN"), copies=8))
        width = row_room(k, m)
        rows, merge, batch = Codes(e, n, width), Merge(e, n, d, m, width), Batch(e, n, n * k)
        merge.run(cases.bf16(x), cases.bf16(w), b, rows)
        batch.choose(rows, n * k, m)
        if batch.answer != [0, 0]:
            return [f"batch {shape}: rows were cut ({batch.answer}): choose another case"]
        want_rows, want_at, want = ref.select_batch(ref.scores64(x, w, b).nan_to_num(nan=-1.0), n * k)
        starts = e.read(batch.starts)
        count = int(starts[-1])
        if count != len(want):
            return [f"batch {shape}: {count} codes for {len(want)}"]
        lengths = starts[1:] - starts[:-1]
        got_rows = torch.repeat_interleave(torch.arange(n), lengths.long())
        got, got_at = e.read(batch.values)[:count], e.read(batch.indices)[:count]
        same = torch.equal(got_rows, want_rows.cpu()) and torch.equal(got_at.long(), want_at.cpu()) and torch.equal(got, want.cpu())
        smallest = e.read(batch.found).view(torch.float32)[0].item()
        faults = [] if same else [f"batch {shape}: other codes than the reference's"]
        return faults + ([] if smallest == want.min().item() else [f"batch {shape}: smallest {smallest} for {want.min().item()}"])

    return report.attempt(f"batch {shape}", "v1", work)


def threshold_checks(e, report, shape, seed):
    n, d, m, _ = shape

    def work():
        x, w, b = (e.put(t) for t in cases.normal(n, d, m, seed, e.device))
        theta = e.put(1.5 + 0.5 * torch.rand(m))
        parts = []
        for t in (x, w):
            half, norms = e.empty(*t.shape, dtype=torch.bfloat16), e.empty(len(t), 2)
            grid, threads = warps(len(t))
            e.launch("cast_rows", grid, threads, x=t, b=None, n=len(t), d=d, full=None, half=half, norms=norms,
                     bad=e.zeros(1, dtype=torch.int32))
            parts.append((half, norms))
        scores, counts, starts = e.empty(n, m), e.zeros(n, dtype=torch.int32), e.zeros(n, dtype=torch.int64)
        e.product(parts[0][0], parts[1][0], scores)
        grid, threads = warps(n)
        screen = dict(scores=scores, stride=m, bias=b, threshold=theta, n=n, columns=m, first=0, sum=summing(d), row_norms=parts[0][1],
                      norms=parts[1][1], counts=counts, starts=starts)
        e.launch("threshold_screen", grid, threads, entries=None, **screen)
        room = counts.long()
        starts.copy_(room.cumsum(0) - room)
        total = max(int(e.read(room.sum())), 1)
        entries, values = e.empty(total, dtype=torch.int32), e.empty(total)
        counts.zero_()
        e.launch("threshold_screen", grid, threads, entries=entries, **screen)
        e.launch("threshold_rescore", grid, threads, x=x, w=w, bias=b, threshold=theta, n=n, d=d, counts=counts, starts=starts, entries=entries,
                 values=values)
        want = ref.scores64(x, w, b)
        above = want > theta[None]
        got = torch.zeros_like(above)
        for row, (start, count) in enumerate(zip(e.read(starts).tolist(), e.read(counts).tolist())):
            at = entries[start:start + count].long()
            got[row, at] = True
            if (values[start:start + count] - want[row, at]).abs().max().item() > 1e-6 if count else False:
                return [f"threshold {shape}: values of row {row}"]
        # A value may round to the other side of its threshold only where they are equal to f32's precision.
        differ = (got != above) & ((want - theta[None]).abs() > 1e-6)
        return [] if not differ.any() else [f"threshold {shape}: {differ.sum().item()} codes"]

    return report.attempt(f"threshold {shape}", "certified", work)


def made(e, shape, seed, **settings):
    """A step and its reference on the same coder and rows."""
    n, d, m, k = shape
    x, *coder = (e.put(t) for t in cases.matrices(n, d, m, seed, e.device))
    step = Step(e, n, k, *coder, **settings)
    step.x.copy_(x)
    return x, step, ref.Coder64(*coder, step.lr, step.betas, step.eps)


def gradient_checks(e, report, shape, seed, precision, encoder_kind="merge", group="v1"):
    n, d, m, k = shape
    limit = 1e-2 if precision == "bf16" else 1e-5
    label = f"{precision} {encoder_kind} {shape}"

    def gradients():
        x, step, want = made(e, shape, seed, precision=precision, encoder=encoder_kind)
        step.run()
        told = want.backward(x, step.rows.indices)
        # After one step from zero the first moment is (1 - beta1) times the gradient.
        scale = 1 / (1 - step.betas[0])
        faults = []
        for name, moment, parameter in zip(("dW_enc", "db_enc", "dW_dec", "db_dec"), step.first, want.parameters):
            faults += ref.close(f"{label} {name}", moment * scale, parameter.grad, limit)
        faults += ref.close(f"{label} codes", step.rows.values, told["codes"], limit)
        faults += ref.close(f"{label} error", step.errors, told["error"], limit)
        faults += ref.close(f"{label} loss", step.loss / (n * d), torch.tensor([told["loss"]]), limit)
        faults += ref.close(f"{label} norm", step.norm, torch.tensor([told["norm"]]), limit)
        # Gradients of the values, by latent then row.
        dz = value_gradients(step, told["values"])
        faults += ref.close(f"{label} dv", *dz, limit)
        fired = torch.zeros(m, dtype=torch.bool, device=x.device)
        fired[step.rows.indices[step.rows.indices >= 0].long()] = True
        if not torch.equal(step.silent, torch.where(fired, 0, n)):
            faults.append(f"{label}: tokens since latents last fired")
        want.step(0, 0)
        for name, shadow, master in (("W_enc", step.half_enc, step.parameters[0]), ("W_dec", step.half_dec, step.parameters[2])):
            if shadow is not None and not torch.equal(shadow, master.to(torch.bfloat16)):
                faults.append(f"{label}: the bf16 copy of {name} is not its rounding")
        return faults

    def adam():
        clip = 0.05
        x, step, want = made(e, shape, seed + 1, precision=precision, encoder=encoder_kind, clip=clip, lr=1e-3)
        worst = 0.0
        for _ in range(5):
            step.run()
            want.step(clip, want.backward(x, step.rows.indices)["norm"])
        faults = []
        for name, ours, theirs, start in zip(("W_enc", "b_enc", "W_dec", "b_dec"), step.parameters, want.parameters, want.start):
            off = ref.rel(ours.double() - start, theirs.detach() - start)
            worst = max(worst, off)
            # Adam divides by the root of the second moment: rounding of small gradients comes back large.
            if not off < (0.06 if precision == "bf16" else 2e-4):
                faults.append(f"{label} {name} after 5 steps: its move is off by {off:.1e}")
        off = (step.parameters[2].double().norm(dim=1) - 1).abs().max().item()
        return faults + ([] if off < 1e-5 else [f"{label}: decoder rows' norms are off by {off:.1e}"]), dict(worst=worst)

    ok = report.attempt(f"gradients {label}", group, gradients)
    return ok and report.attempt(f"5 Adam steps {label}", group, adam)


def value_gradients(step, by_row):
    """(ours, the reference's) in the order of the columns: latents ascending, rows ascending within."""
    indices = step.rows.indices.long()
    rows, places = (indices >= 0).nonzero(as_tuple=True)
    order = torch.argsort(indices[rows, places] * step.n + rows)
    return step.columns.dz[: len(order)], by_row[rows[order], places[order]]


def aux_checks(e, report, shape, seed, precision):
    n, d, m, k = shape
    coef, k_aux = 1 / 32, min(d // 2, 512)

    def work():
        x, step, want = made(e, shape, seed, precision=precision, aux=(coef, k_aux))
        step.silent[::3] = 1000
        step.aux_after = 1000
        step.run()
        dead = torch.arange(0, m, 3)
        if step.dead != len(dead) or not torch.equal(e.read(step.aux.list)[: step.dead].long(), dead):
            return [f"AuxK {shape}: {step.dead} dead latents for {len(dead)}, or others"]
        w_enc, b_enc, _, b_dec = want.parameters
        with torch.no_grad():
            scores = ((x.double() - b_dec) @ w_enc.T + b_enc)[:, dead.to(x.device)].float()
        values, at, _ = ref.select(scores, k_aux)
        chosen = step.aux.indices
        # Ours ascend by latent; near ties may differ.
        ours = torch.zeros(n, m + 1, dtype=torch.bool, device=x.device).scatter_(1, torch.where(chosen >= 0, chosen.long(), m), True)[:, :m]
        theirs = torch.zeros_like(ours)
        rows, places = (at >= 0).nonzero(as_tuple=True)
        theirs[rows, dead.to(x.device)[at[rows, places].long()]] = True
        differ = (ours != theirs).sum().item()
        faults = [] if differ <= 2 * (0 if precision == "f32" else 0.02) * theirs.sum().item() + 2 else [f"AuxK {shape}: {differ} codes differ"]
        if (chosen[:, 1:] <= chosen[:, :-1])[chosen[:, 1:] >= 0].any():
            faults.append(f"AuxK {shape}: latents do not ascend")
        want.backward(x, step.rows.indices, (chosen, coef))
        for name, moment, parameter in zip(("dW_enc", "db_enc", "dW_dec", "db_dec"), step.first, want.parameters):
            faults += ref.close(f"AuxK {precision} {shape} {name}", moment / (1 - step.betas[0]), parameter.grad,
                                1e-2 if precision == "bf16" else 2e-5)
        return faults

    def ties():
        g = torch.Generator().manual_seed(seed)
        scores = torch.randint(-3, 4, (n, m), generator=g).float()
        bias, listed = torch.zeros(2 * m), torch.arange(1, 2 * m, 2, dtype=torch.int32)
        values, at, _ = ref.select(scores, k)
        want = torch.where(at >= 0, at.long() * 2 + 1, 1 << 40).sort(1).values
        got, amounts = e.empty(n, k, dtype=torch.int32), e.empty(n, k)
        e.launch("select_rows", n, 256, scores=e.put(scores), stride=m, bias=e.put(bias), list=e.put(listed), n=n, count=m, k=k, indices=got,
                 values=amounts)
        ours = e.read(got).long()
        ours = torch.where(ours < 0, 1 << 40, ours)
        same = torch.equal(ours, want) and e.read(amounts).sum().item() == values.sum().item()
        return [] if same else [f"select_rows {shape}: other latents than the reference's"]

    return report.attempt(f"AuxK {precision} {shape}", "v1", work) and report.attempt(f"AuxK ties {shape}", "v1", ties)


def bring_up(e, report, variants):
    """The fused Hopper encode piece by piece: all scores, then lists without compaction. `variants`: engines by name."""
    ok = True
    for n, d, m in [(128, 64, 256), (128, 512, 256), (257, 200, 1000)]:
        def scores():
            x, w, b = (e.put(t) for t in cases.normal(n, d, m, n, e.device))
            xh, wh, out = cases.bf16(x), cases.bf16(w), e.empty(n, m)
            fused = Fused(variants["bring_up_1"], n, d, m, 16, "encode_hopper", parts=1)
            fused.choose(xh, wh, b, entries=At(out, 0, "f32"))
            want = ref.scores64(xh, wh, b)
            wrong = ~((out - want).abs() <= ref.tolerance(xh, wh, want)[:, None])
            if not wrong.any():
                return []
            # Which: whole rows or columns of a fragment point to the layout, steps of 64 in depth to swizzle or descriptors.
            by = lambda axis, size: [int(wrong.sum(1 - axis)[i::size].sum()) for i in range(size)]
            return [f"scores ({n}, {d}, {m}): {wrong.sum().item()} of {n * m} wrong; by row mod 16 {by(0, 16)}; by column mod 8 {by(1, 8)}"]

        ok = ok and report.attempt(f"bring-up 1, scores {(n, d, m)}", "hopper", scores)
    for n, m, relu in [(128, 256, 0), (257, 256, 0), (130, 2048, 1)]:
        def lists():
            k, d = 32, 128
            x, w, b = (e.put(t) for t in cases.whole(n, d, m, n, e.device))
            fused, codes = Fused(variants["bring_up_2"], n, d, m, k, "encode_hopper", parts=1, cap=64 * ceil(m, 256) + 64), Codes(e, n, k)
            fused.choose(cases.bf16(x), cases.bf16(w), b, relu)
            finish(e, fused.entries, fused.counts, fused.lists, fused.cap, codes)
            return ref.same_codes(f"lists ({n}, {m})", found(codes), ref.select(ref.scores64(x, w, b), k, relu == 1))

        ok = ok and report.attempt(f"bring-up 2, lists without compaction {(n, m)}", "hopper", lists)
    return ok


def kernels_of(e):
    return ["merge", "merge_f32", "certified", "encode_ampere", "encode_ampere_small"]


def run(e, report, shapes, step_shapes, kinds=None, steps=True):
    """False where the device was lost."""
    groups = {"certified": "certified", "encode_ampere": "ampere", "encode_ampere_small": "ampere"}
    for seed, shape in enumerate(shapes):
        for kind in kinds or kernels_of(e):
            if not encode_checks(e, report, kind, groups.get(kind, "v1"), shape, 100 * seed):
                return False
        if not (batch_checks(e, report, shape, seed) and threshold_checks(e, report, shape, seed)):
            return False
    for seed, shape in enumerate(step_shapes if steps else []):
        for precision in ("f32", "bf16", "certified"):
            if not gradient_checks(e, report, shape, seed, precision):
                return False
        for precision in ("f32", "bf16"):
            if not aux_checks(e, report, shape, seed, precision):
                return False
    return True


def run_hopper(e, report, variants, shapes, step_shapes):
    if variants and not bring_up(e, report, variants):
        return False
    for kernel in ("encode_hopper", "encode_hopper_pair"):
        group = "hopper" if kernel == "encode_hopper" else "hopper_pair"
        if not e.has(kernel):
            report.note(f"{kernel} is not there: not checked")
            continue
        for seed, shape in enumerate(shapes):
            for parts in (1, None) if seed else (None,):
                more = {} if parts is None else {"parts": parts}
                if not encode_checks(e, report, kernel, group, shape, 100 * seed, **more):
                    return False
        for seed, shape in enumerate(step_shapes):
            if shape[1] % 8 == 0 and not gradient_checks(e, report, shape, seed, "bf16", kernel, group):
                return False
    return True
