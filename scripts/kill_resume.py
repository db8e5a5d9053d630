"""Kills harvest and train (from shards, and from a host) at random moments, resumes them, and compares every artefact with an uninterrupted run's.

    python scripts/kill_resume.py --bin target/release/lapidary --work /tmp/kills --kills 20

Every file but timing.parquet must be the same bytes. Also compares --threads 1 with --threads 2. Needs nothing but Python.
"""

import argparse
import hashlib
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "timing.parquet"
    }


def run(command):
    started = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.time() - started


def killed(command, after):
    """Runs until `after` seconds, then kill -9; True when it was cut."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def stage(name, command, out, work, kills, rng):
    """`command` ends with --out; runs it whole, then with kills, and compares."""
    whole = work / f"{name}-whole"
    length = run(command + ["--out", str(whole)])
    want = digest(whole)
    done, rounds = 0, 0
    while done < kills:
        cut = work / f"{name}-cut"
        shutil.rmtree(cut, ignore_errors=True)
        rounds += 1
        extra = []
        # Several kills in one run: each resumes where the one before was cut.
        while killed(command + extra + ["--out", str(cut)], rng.uniform(0.02, 0.7) * length):
            done += 1
            extra = ["--resume"] if cut.exists() and any(cut.iterdir()) else []
        got = digest(cut)
        if got != want:
            differing = sorted(k for k in want.keys() | got.keys() if want.get(k) != got.get(k))
            sys.exit(f"{name}: after {done} kills these differ: {differing}")
    print(f"{name}: {done} kills in {rounds} runs of {length:.1f} s, {len(want)} files identical", flush=True)
    return whole


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--bin", required=True)
    p.add_argument("--work", required=True, type=pathlib.Path)
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    rng = random.Random(a.seed)
    work = a.work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    harvest = [a.bin, "harvest", "--model", "fable", "--corpus", "fable", "--hook", "blocks.1.hook_resid_post", "--hook", "blocks.2.hook_mlp_out",
               "--n-tokens", "60_000", "--context", "128", "--set", "harvest.shard_rows=6000", "--quiet"]
    shards = stage("harvest", harvest, "shards", work, a.kills, rng)
    train = [a.bin, "train", "--shards", str(shards), "--hook", "blocks.1.hook_resid_post", "--d-sae", "512", "--k", "8,16", "--batch", "512",
             "--n-tokens", "150_000", "--set", "train.checkpoint_seconds=0.1", "--set", "train.shuffle_bytes=4_000_000", "--quiet"]
    trained = stage("train", train, "runs", work, a.kills, rng)
    # Six windows of the buffer, two passes over the rows.
    stream = [a.bin, "train", "--model", "fable", "--corpus", "fable", "--hook", "blocks.1.hook_resid_post", "--d-sae", "512", "--k", "8,16",
              "--batch", "512", "--n-tokens", "120_000", "--set", "harvest.n_tokens=64_000", "--set", "train.checkpoint_seconds=0.1",
              "--set", "train.shuffle_bytes=9_000_000", "--quiet"]
    streamed = stage("stream", stream, "streamed", work, a.kills, rng)
    for name, command, whole in [("harvest", harvest, shards), ("train", train, trained), ("stream", stream, streamed)]:
        for threads in ["1", "2"]:
            other = work / f"{name}-t{threads}"
            run(command + ["--threads", threads, "--out", str(other)])
            if digest(other) != digest(whole):
                sys.exit(f"{name}: --threads {threads} gives other bytes")
    print("threads 1 and 2: identical", flush=True)


if __name__ == "__main__":
    main()
