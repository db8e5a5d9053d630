"""The carried `lapidary` itself on this GPU: trains, encodes and scores as the CPU does, and how many tokens per second it trains."""

import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from glob import glob
from pathlib import Path


def unpacked(carried, folder):
    for name in ("lapidary", "lapidary.xz"):
        path = Path(carried) / name
        if path.is_file():
            target = Path(folder) / "lapidary"
            with (lzma.open(path) if name.endswith("xz") else path.open("rb")) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            target.chmod(0o755)
            return target
    return None


def environment():
    folders = [p for base in sys.path for p in glob(os.path.join(base, "nvidia", "*", "lib"))]
    folders += ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])}


def run(report, carried, folder, left):
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = unpacked(carried, folder)
    if program is None:
        report.note("no lapidary was carried: the library's own run is left out")
        return
    env = environment()

    def call(*words):
        command = [str(program), *map(str, words)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=max(left() - 2, 5))
        print(f"$ {' '.join(command)}\n{done.stdout[-800:]}{done.stderr[-800:]}", flush=True)
        if done.returncode:
            raise RuntimeError(f"lapidary {words[0]}: exit {done.returncode}: {' '.join(done.stderr.strip().splitlines()[:2])[:250]}")
        return done.stdout

    shards = folder / "shards"

    def score(dictionary, device):
        told = json.loads(call("score", "--dictionary", dictionary, "--shards", shards, "--device", device, "--json"))
        return told["metrics"]["fvu"]

    def planted():
        call("ingest", "--from", "planted:zipf", "--n-tokens", 60000, "--seed", 1, "--out", shards)
        return []

    def train(name, device, *more):
        call("train", "--shards", shards, "--d-sae", 1024, "--k", 16, "--n-tokens", 100000, "--batch", 2048, "--seed", 3, "--lr", "1e-3",
             "--device", device, "--out", folder / name, *more)

    if not report.attempt("ingest", "rust", planted):
        return

    def same_learning():
        train("cpu", "cpu", "--arch", "topk")
        want, faults = score(folder / "cpu", "cpu"), []
        for precision in ("f32", "bf16", "certified", "tf32"):
            train(precision, "cuda", "--arch", "topk", "--set", f"train.gpu_precision={precision}")
            got = score(folder / precision, "cpu")
            report.number(f"rust.fvu_{precision}", got)
            if not abs(got - want) < 0.02 * want:
                faults.append(f"{precision}: FVU {got:.4f}, the CPU's {want:.4f}")
        got = score(folder / "cpu", "cuda")
        if not abs(got - want) < 1e-5 * want:
            faults.append(f"scored on the GPU: FVU {got}, the CPU's {want}")
        return faults

    def same_codes():
        for device in ("cpu", "cuda"):
            call("encode", "--dictionary", folder / "cpu", "--shards", shards, "--device", device, "--out", folder / f"codes_{device}")
        import pyarrow.parquet as pq
        files = [sorted(p.relative_to(folder / f"codes_{d}") for p in (folder / f"codes_{d}").rglob("*.parquet") if "timing" not in p.name)
                 for d in ("cpu", "cuda")]
        if files[0] != files[1] or not files[0]:
            return [f"other files: {files}"]
        return [f"{f} differs" for f in files[0] if not pq.read_table(folder / "codes_cpu" / f).equals(pq.read_table(folder / "codes_cuda" / f))]

    def learners():
        for arch in ("batch-topk", "matryoshka"):
            train(arch, "cuda", "--arch", arch)
            report.number(f"rust.fvu_{arch}", score(folder / arch, "cpu"))
        return []

    report.attempt("trains as the CPU does", "rust", same_learning)
    report.attempt("encodes as the CPU does", "rust", same_codes)
    report.attempt("batch-topk and matryoshka train", "rust", learners)

    def speed():
        import numpy as np
        rows = np.random.default_rng(0).standard_normal((65536, 768), dtype=np.float32)
        np.save(folder / "rows.npy", rows)
        wide = folder / "wide"
        call("ingest", "--from", folder / "rows.npy", "--hook", "x", "--held-out", 0, "--out", wide)
        times = {}
        for tokens in (65536, 589824):
            begin = time.monotonic()
            call("train", "--shards", wide, "--arch", "topk", "--d-sae", 24576, "--k", 32, "--batch", 8192, "--n-tokens", tokens, "--lr", "1e-4",
                 "--device", "cuda", "--out", folder / f"wide_{tokens}")
            times[tokens] = time.monotonic() - begin
        # The difference: start and end of a run are in both.
        report.number("rust.tokens_per_second", (589824 - 65536) / (times[589824] - times[65536]))
        return []

    report.attempt("tokens per second", "rust", speed)
