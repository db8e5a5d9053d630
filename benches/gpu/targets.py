"""The targets (kernels.md section 4 of the plan, restated here), and a verdict on each from what was measured. Pure."""

COPY_TBS = 4.3  # where the probe did not run


def ratio(a, b):
    return None if a is None or not b else a / b


class Row:
    """One line: `value` of at least `must` (or at most, where `low`); `good` is the stretch."""

    def __init__(self, number, what, value, must, good=None, low=False, unit="x", why="not measured"):
        self.number, self.what, self.value, self.must, self.good, self.low, self.unit, self.why = number, what, value, must, good, low, unit, why

    def verdict(self):
        if self.value is None:
            return f"SKIP ({self.why})"
        reaches = lambda limit: self.value <= limit if self.low else self.value >= limit
        if not reaches(self.must):
            return "FAIL"
        return "PASS, stretch" if self.good is not None and reaches(self.good) else "PASS"

    def line(self):
        value = "-" if self.value is None else f"{self.value:.2f}{self.unit}"
        limit = f"{'<=' if self.low else '>='} {self.must:g}{self.unit}" + ("" if self.good is None else f" ({self.good:g})")
        return f"{self.number:>3}  {self.what:<58} {value:>10}  {limit:<18} {self.verdict()}"


def rows(r, checks):
    """`r`: numbers by key; `checks`: what was checked."""
    out = []

    def encode(d, m, n, who):
        return r.get(f"encode.{d}.{m}.{n}.{who}")

    def step(d, who, m=65536, n=8192, k=64):
        return r.get(f"step.{n}.{k}.{d}.{m}.{who}")

    v2 = "v2 was not right, or not run"
    for number, who, name, limits in ((1, "merge", "v1", ((768, 2.3, 2.6), (2304, 1.7, 1.8), (4096, 1.4, 1.5))),
                                      (2, "hopper", "v2", ((768, 3.5, 4.5), (2304, 2.0, 2.25), (4096, 1.6, 1.7)))):
        for d, must, good in limits:
            values = {}
            for m in (65536, 24576):
                values[m] = ratio(encode(d, m, 8192, "eager"), encode(d, m, 8192, who))
            known = [v for v in values.values() if v is not None]
            # At every M and N that the target names: the worst one counts.
            out.append(Row(number, f"encode {name} / torch eager bf16, d={d}, worst of M=24576, 65536", min(known) if known else None, must,
                           good, why=v2 if who == "hopper" else "not measured"))
    for number, who, name, limits in ((3, "hopper", "v2", ((768, 75, 80), (2304, 83, 88), (4096, 85, 90))),
                                      (4, "merge", "v1", ((768, 45, 55), (2304, 65, 75), (4096, 75, 82)))):
        for d, must, good in limits:
            value = ratio(encode(d, 65536, 8192, "gemm"), encode(d, 65536, 8192, who))
            out.append(Row(number, f"cuBLAS bf16 time / encode {name} time, d={d}", value and 100 * value, must, good, unit="%",
                           why=v2 if who == "hopper" else "not measured"))
    out.append(Row(5, "certified / torch fp32 eager, d=2304, M=65536",
                   ratio(encode(2304, 65536, 8192, "eager_f32"), encode(2304, 65536, 8192, "certified")), 5, 8))
    for who, name in (("merge", "v1"), ("hopper", "v2")):
        room = encode(2304, 65536, 8192, f"{who}_bytes")
        out.append(Row(6, f"encode {name}: transient memory / (64 MB + 9 KB N)", ratio(room, 64e6 + 9e3 * 8192), 1, low=True))
        out.append(Row(6, f"encode {name}: eager's transient memory / ours", ratio(encode(2304, 65536, 8192, "eager_bytes"), room), 20, 40))
    copy = r.get("probe.copy_tbs", COPY_TBS)
    speed = r.get("decode.2304.65536.8192.ours_tbs")
    out.append(Row(7, "decode, bf16 rows, d=2304: share of copy bandwidth", speed and 100 * speed / copy, 75, 90, unit="%"))
    out.append(Row(7, "decode / sparsify's Triton (f32 rows), d=2304",
                   ratio(r.get("decode.2304.65536.8192.sparsify"), r.get("decode.2304.65536.8192.ours")), 2, 2.5))
    share = ratio(step(2304, "floor_ms"), step(2304, "merge_backward"))
    out.append(Row(8, "backward + Adam + renorm, d=2304: share of its floor", share and 100 * share, 70, 80, unit="%"))
    out.append(Row(8, "the same / sparsify's", ratio(step(2304, "sparsify_backward"), step(2304, "merge_backward")), 2.7, 3.5))
    nine = {768: (2.3, 2.3), 2304: (2.0, 2.0), 4096: (2.0, 1.9)}
    ten = {768: (3.0, 3.0, 3.5), 2304: (2.3, 2.2, None), 4096: (2.1, 2.1, None)}
    for d in (768, 2304, 4096):
        for peer, must in zip(("sparsify", "openai"), nine[d]):
            out.append(Row(9, f"step v1 / {peer}, d={d}", ratio(step(d, peer), step(d, "merge")), must, 2.5, why="peer or ours not run"))
    for d in (768, 2304, 4096):
        for peer, must in zip(("sparsify", "openai"), ten[d]):
            out.append(Row(10, f"step v2 / {peer}, d={d}", ratio(step(d, peer), step(d, "hopper")), must, ten[d][2], why="peer or v2 not run"))
    for who, name in (("merge", "v1"), ("hopper", "v2")):
        for d in (768, 2304, 4096):
            must = 3 if who == "merge" else 5 if d == 768 else 3.5
            out.append(Row(11, f"step {name} / dense eager, d={d}", ratio(step(d, "dense"), step(d, who)), must, 5.5,
                           why=v2 if who == "hopper" else "not measured"))
    peak = step(2304, "merge_peak")
    out.append(Row(12, "peak memory of a step, d=2304, GB", peak and peak / 1e9, 5, low=True, unit=""))
    out.append(Row(12, "eager's activations / ours", ratio(step(2304, "dense_activations"), step(2304, "merge_activations")), 20))
    out.append(Row(13, "M=1M, d=4096, N=8192: ms per step", r.get("mem.8192.64.4096.1048576.merge"), 250, 180, low=True, unit=""))
    out.append(Row(14, "BatchTopK encode / TopK encode v1, d=2304",
                   ratio(encode(2304, 65536, 8192, "batch"), encode(2304, 65536, 8192, "merge")), 1.1, low=True))
    for d, must in ((768, 3), (2304, 2)):
        out.append(Row(14, f"BatchTopK encode / torch's flat top-k, d={d}",
                       ratio(encode(d, 65536, 8192, "eager_batch"), encode(d, 65536, 8192, "batch")), must))
    out.append(Row(15, "matching pursuit on the device", None, 5, 20, why="no such kernels yet"))
    names = {"v1": "v1, selections, steps", "certified": "certified: float64's sets", "ampere": "v3", "hopper": "v2", "hopper_pair": "v2, pairs",
             "memcheck": "compute-sanitizer memcheck", "racecheck": "compute-sanitizer racecheck", "rust": "the library's own run"}
    for group, name in names.items():
        own = [c for c in checks if c["group"] == group]
        bad = sum(bool(c["faults"]) for c in own)
        out.append(Row(16, f"correct: {name} ({len(own)} checks, {bad} failed)", float(bad) if own else None, 0, low=True, unit=""))
    out.append(Row(17, "CPU encode", None, 1.15, why="benches/README.md, cargo bench"))
    return out


def table(numbers, checks, sections):
    """At most 60 lines. `sections`: (name, what became of it, seconds)."""
    lines = [numbers.get("probe.device", "no device was probed")]
    probe = {k[6:]: v for k, v in numbers.items() if k.startswith("probe.") and isinstance(v, float)}
    if probe:
        lines.append("  ".join(f"{k} {v:.4g}" for k, v in probe.items()))
    lines.append("  ".join(f"{name}: {how} {seconds:.0f} s" for name, how, seconds in sections))
    flow = {k[5:]: v for k, v in numbers.items() if k.startswith("flow.")}
    if flow:
        lines.append("tokens/s, GPT-NeoX 6 x 768 bf16 + M=65536: " + ", ".join(f"{k} {v:,.0f}" for k, v in flow.items()))
    if "rust.tokens_per_second" in numbers:
        lines.append(f"lapidary train, d=768, M=24576, from shards: {numbers['rust.tokens_per_second']:,.0f} tokens/s")
    lines += [f"{'#':>3}  {'quantity':<58} {'measured':>10}  {'target (stretch)':<18} verdict", *(row.line() for row in rows(numbers, checks))]
    return lines
