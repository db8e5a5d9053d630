"""Every variant on the same activations: held-out FVU, L0, dead latents, loss recovered and training time, as one Markdown table.

    lapidary harvest --model MODEL --corpus TOKENS --hook HOOK ... --out shards
    python benches/variant_table.py --lapidary target/release/lapidary --shards shards --model MODEL --corpus TOKENS --out table

For each variant the learning rate is chosen on training rows (seed 0, lowest FVU over the last log window; for penalised variants a higher
rate also lowers L0, so compare rates at equal L0 with --lr RATE, one at a time), then three seeds are trained
and scored on the held-out rows. Penalised variants are trained at several weights, and read at the L0 of the others by interpolation
(FVU linear in log L0) between the two settings around it. Seconds are those of one dictionary trained alone on all cores. Python's
standard library is enough; what is there already is not done again.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import time
from pathlib import Path

K = 16
# name, flags, sparsity flag with its settings where L0 is not given but follows from a penalty; `msae` is read at K, its smallest level
VARIANTS = [
    ("topk", ["--arch", "topk", "--k", str(K)], None),
    ("batch-topk", ["--arch", "batch-topk", "--k", str(K)], None),
    ("matryoshka", ["--arch", "matryoshka", "--k", str(K)], None),
    ("msae", ["--arch", "msae", "--k", str(K)], None),
    ("msae-reverse", ["--arch", "msae", "--k", str(K), "--set", "sae.weighting=reverse"], None),
    ("mp", ["--arch", "mp", "--k", str(K)], None),
    ("jump-relu", ["--arch", "jump-relu"], ("--target-l0", [14, 18])),
    ("gated", ["--arch", "gated"], ("--l1", [0.7, 1])),
    ("relu", ["--arch", "relu"], ("--l1", [0.4, 0.5])),
]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lapidary", default="target/release/lapidary")
    p.add_argument("--shards", required=True)
    p.add_argument("--model")
    p.add_argument("--corpus")
    p.add_argument("--out", required=True)
    p.add_argument("--d-sae", default="1024")
    p.add_argument("--n-tokens", default="1_000_000")
    p.add_argument("--batch", default="512")
    p.add_argument("--lr", default="2e-3,4e-3,8e-3,16e-3")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--only", help="comma list of variants")
    args = p.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = args.seeds.split(",")
    only = args.only.split(",") if args.only else None
    rows = []
    for name, flags, sparsity in VARIANTS:
        if only and name not in only:
            continue
        settings = [None] if sparsity is None else sparsity[1]
        points = []
        for setting in settings:
            extra = flags + ([] if setting is None else [sparsity[0], str(setting)])
            label = name if setting is None else f"{name}-{setting}"
            lr = best_lr(args, out / f"{label}-lr", extra)
            points.append(point(args, out / label, extra, lr, seeds, label))
            print(json.dumps(points[-1]), flush=True)
        rows.append(at_l0(name, points) if sparsity else points[0])
    table = "\n".join(markdown(rows))
    (out / "table.md").write_text(table + "\n")
    (out / "table.json").write_text(json.dumps(rows, indent=1))
    print(table)


def run(args, *words):
    done = subprocess.run([args.lapidary, "--json", "-q", *words], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)


def train(args, dir, flags, lrs, seed):
    """One pass over the rows; what an earlier call left unfinished is done again."""
    mode = "--resume" if any(dir.glob("**/dictionary.json")) else "--overwrite"
    return run(args, "train", "--shards", args.shards, "--d-sae", args.d_sae, "--n-tokens", args.n_tokens, "--batch", args.batch,
               "--seed", seed, "--lr", ",".join(lrs), *flags, "--out", str(dir), mode)


def best_lr(args, dir, flags):
    """The rate of the lowest training FVU, of those whose L0 is near the lowest's (a penalty may be dodged by a high L0)."""
    kept = dir / "chosen.txt"
    if kept.is_file():
        return kept.read_text().strip()
    lrs = args.lr.split(",")
    members = train(args, dir, flags, lrs, "0")["members"]
    chosen = min(members, key=lambda m: m["last"]["fvu"])
    kept.write_text(f"{chosen['lr']:g}")
    return f"{chosen['lr']:g}"


def point(args, dir, flags, lr, seeds, label):
    figures = []
    for seed in seeds:
        folder = Path(f"{dir}-s{seed}")
        kept = folder / "figures.json"
        if kept.is_file():
            figures.append(json.loads(kept.read_text()))
            continue
        shutil.rmtree(folder, ignore_errors=True)
        started = time.time()
        train(args, folder, flags, [lr], seed)
        seconds = time.time() - started
        splice = ["--model", args.model, "--corpus", args.corpus] if args.model else []
        if "msae" in flags:
            splice += ["--activation", f"topk:{K}", "--out", str(folder / f"k{K}")]
        score = run(args, "score", "--dictionary", str(folder), "--shards", args.shards, "--no-baselines", *splice)["metrics"]
        figure = {
            "fvu": score["fvu"], "l0": score["l0"], "dead": score["dead_fraction"] * int(args.d_sae.replace("_", "")),
            "recovered": score.get("ce_loss_score"), "seconds": seconds,
        }
        kept.write_text(json.dumps(figure))
        figures.append(figure)
    mean = {key: statistics.mean(f[key] for f in figures) for key in figures[0] if figures[0][key] is not None}
    spread = {key: statistics.stdev(f[key] for f in figures) if len(figures) > 1 else 0.0 for key in mean}
    return {"variant": label, "lr": lr, "mean": mean, "std": spread, "seeds": len(figures)}


def at_l0(name, points):
    """Interpolated at L0 = K, linear in log L0, between the settings on both sides."""
    points = sorted(points, key=lambda p: p["mean"]["l0"])
    below = [p for p in points if p["mean"]["l0"] <= K]
    above = [p for p in points if p["mean"]["l0"] >= K]
    if not below or not above:
        nearest = min(points, key=lambda p: abs(math.log(p["mean"]["l0"] / K)))
        return {**nearest, "variant": f"{name} ({nearest['variant']}; not bracketed)"}
    a, b = below[-1], above[0]
    la, lb = math.log(a["mean"]["l0"]), math.log(b["mean"]["l0"])
    t = 0.0 if la == lb else (math.log(K) - la) / (lb - la)
    mix = lambda which: {key: (1 - t) * a[which][key] + t * b[which][key] for key in a[which]} | {"l0": K}
    return {"variant": f"{name} (between L0 {a['mean']['l0']:.1f} and {b['mean']['l0']:.1f})", "lr": f"{a['lr']}/{b['lr']}",
            "mean": mix("mean"), "std": mix("std"), "seeds": a["seeds"]}


def markdown(rows):
    yield "| variant | lr | FVU | L0 | dead | CE recovered | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        m, s = row["mean"], row["std"]
        recovered = f"{m['recovered']:.4f}" if "recovered" in m else "-"
        yield (f"| {row['variant']} | {row['lr']} | {m['fvu']:.4f} ± {s['fvu']:.4f} | {m['l0']:.2f} | {m['dead']:.0f} | {recovered} "
               f"| {m['seconds']:.0f} |")


if __name__ == "__main__":
    main()
