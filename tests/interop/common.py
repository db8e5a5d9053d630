"""What the checks share: running Lapidary, reading its codes, comparing."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq

TOLERANCE = 1e-5
skipped = []


class Lapidary:
    """The binary, with everything it makes under one folder."""

    def __init__(self, binary, work):
        self.binary, self.work = pathlib.Path(binary).resolve(), pathlib.Path(work)
        self.work.mkdir(parents=True, exist_ok=True)

    def __call__(self, *line, ok=(0,)):
        command = [str(self.binary), *map(str, line), "--json", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in ok:
            sys.exit(f"FAILED: {' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def rows(self, seed=1, n=24_000, held_out=2_000):
        """Planted rows as shards, and the held-out ones as an array."""
        shards = self.work / "shards"
        if not shards.exists():
            self("ingest", "--from", "planted:zipf?d_in=32,n_features=48", "--n-tokens", n, "--seed", seed, "--held-out-last", held_out,
                 "--hook", "blocks.3.hook_resid_post", "--out", shards)
        x = []
        for s in json.loads((shards / "manifest.json").read_text())["shards"]:
            if s["split"] == "held-out":
                column = pq.read_table(shards / s["file"])["blocks.3.hook_resid_post"].combine_chunks()
                x.append(column.flatten().to_numpy().reshape(-1, 32))
        x = np.concatenate(x)
        np.save(self.work / "x.npy", x)
        return x

    def train(self, name, *flags):
        """A small dictionary of 64 latents."""
        out = self.work / name
        if not (out / "dictionary.json").exists():
            self("train", "--shards", self.work / "shards", "--d-sae", 64, "--n-tokens", 60_000, "--batch", 512, "--lr", "2e-3",
                 *flags, "--out", out, "--overwrite")
        return out

    def codes(self, dictionary, rows="x.npy"):
        """Dense codes [n, d_sae] and reconstructions [n, d] of an array of rows."""
        out = self.work / (pathlib.Path(dictionary).name + "-codes")
        self("encode", "--dictionary", dictionary, "--from", self.work / rows, "--reconstruct", "--out", out, "--overwrite")
        table = pq.read_table(out / "codes.parquet")
        d_sae = json.loads((pathlib.Path(dictionary) / "dictionary.json").read_text())["d_sae"]
        dense = np.zeros((table.num_rows, d_sae), np.float32)
        for r, (i, v) in enumerate(zip(table["indices"].to_pylist(), table["values"].to_pylist())):
            dense[r, i] = v
        return dense, np.load(out / "reconstruction.npy")

    def export(self, dictionary, form, name, *flags):
        """The folder of an export, which Lapidary itself must call equal. `None` where there is no such format."""
        out = self.work / name
        report = self("export", "--dictionary", dictionary, "--format", form, "--shards", self.work / "shards", "--out", out,
                      "--overwrite", *flags, ok=(0, 2))
        if isinstance(report, str):
            if "there is no format" in report:
                skipped.append(f"{form}: not in this build")
                return None
            sys.exit(f"FAILED: export of {dictionary} as {form}: {report}")
        check(report["equal"], f"{name}: Lapidary reads its export back the same")
        return out

    def imported(self, folder, name, *flags):
        out = self.work / name
        self("import", "--from", folder, "--out", out, "--overwrite", *flags)
        return out


def check(ok, what):
    if not ok:
        sys.exit(f"FAILED: {what}")
    print("ok:", what)


def same(name, got, want, tolerance=TOLERANCE):
    """Codes and reconstructions to 1e-5 (relative where they are above 1); but for rows on an edge, supports too."""
    (a, y), (b, z) = got, want
    a, y = np.asarray(a, np.float32), np.asarray(y, np.float32)
    check(a.shape == b.shape, f"{name}: shape of codes {a.shape}")
    edge = ((a != 0) != (b != 0)).any(1)
    check(edge.mean() <= 0.002, f"{name}: {edge.sum()} of {len(edge)} rows on the edge of another choice")
    codes, recon = np.abs(a - b)[~edge].max(), np.abs(y - z)[~edge].max()
    scale = max(1.0, np.abs(b).max()), max(1.0, np.abs(z).max())
    check(codes <= tolerance * scale[0] and recon <= tolerance * scale[1], f"{name}: codes to {codes:.1e}, reconstructions to {recon:.1e}, L0 {(a != 0).sum(1).mean():.2f}")
