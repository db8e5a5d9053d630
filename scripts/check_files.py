"""Opens a demo's (or any run's) files with other readers: DuckDB, Polars, safetensors. Exits non-zero on the first surprise.

    pip install duckdb polars pyarrow safetensors numpy
    python scripts/check_files.py DIR
"""

import json
import pathlib
import sys

import duckdb
import numpy as np
import polars as pl
from safetensors.numpy import load_file


def check(ok, what):
    if not ok:
        sys.exit(f"FAILED: {what}")
    print("ok:", what)


def shards(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [s["file"] for s in manifest["shards"]]
    check(files, f"{folder}: manifest lists {len(files)} files")
    for split in ("train", "held-out"):
        names = [str(folder / s["file"]) for s in manifest["shards"] if s["split"] == split]
        rows = sum(s["rows"] for s in manifest["shards"] if s["split"] == split)
        if not names:
            continue
        found = duckdb.sql(f"select count(*), count(distinct split), min(split) from read_parquet({names})").fetchall()[0]
        check(found == (rows, 1, split), f"DuckDB: {split} has {rows} rows and only that split")
        frame = pl.read_parquet(names)
        order = frame.select(pl.struct("doc_id", "position")).to_series()
        check(order.is_sorted(), f"Polars: {split} rows ascend by (doc_id, position)")
        for column in manifest["columns"]:
            width, dtype = column["width"], column["dtype"]
            series = frame[column["name"]]
            check(series.dtype == pl.Array({"f32": pl.Float32, "f16": pl.Float16, "bf16": pl.UInt16}[dtype], width), f"Polars: {column['name']} is {series.dtype}")
            if split == "train" and dtype == "f32":
                x = series.to_numpy().astype(np.float64)
                check(np.isfinite(x).all(), f"{column['name']} is finite")
                check(np.allclose((x**2).sum(1).mean(), column["mean_sq_norm"], rtol=1e-9), f"{column['name']}: mean_sq_norm as the manifest says")
                check(np.allclose(x.mean(0), column["mean"], rtol=1e-6, atol=1e-9), f"{column['name']}: mean as the manifest says")


def dictionary(folder):
    header = json.loads((folder / "dictionary.json").read_text())
    t = load_file(folder / "dictionary.safetensors")
    check(t["w_enc"].shape == (header["d_sae"], header["d_in"]), f"{folder}: w_enc is [d_sae, d_in]")
    check(np.allclose(np.linalg.norm(t["w_dec"], axis=1), 1, atol=1e-5), f"{folder}: decoder rows are of unit norm")
    if (folder / "log.parquet").exists():
        log = duckdb.sql(f"select max(step), count(*) from read_parquet('{folder}/log.parquet')").fetchall()[0]
        lines = (folder / "log.jsonl").read_text().splitlines()
        check(log[1] == len(lines), f"{folder}: log.parquet has the {len(lines)} lines of log.jsonl")


def main():
    root = pathlib.Path(sys.argv[1])
    manifests, dictionaries = sorted(root.rglob("manifest.json")), sorted(root.rglob("dictionary.json"))
    check(manifests and dictionaries, f"{root}: {len(manifests)} harvests, {len(dictionaries)} dictionaries")
    for m in manifests:
        shards(m.parent)
    for d in dictionaries:
        dictionary(d.parent)
    for s in sorted(root.rglob("score.json")):
        score = json.loads(s.read_text())
        check({"split", "rows", "metrics", "baselines"} <= set(score), f"{s}: has split, rows, metrics, baselines")


if __name__ == "__main__":
    main()
