"""Decoder rows for those who steer or look: control vectors by gguf-py, tables by pyarrow, numpy and csv."""

import csv

import numpy as np
import pyarrow.parquet as pq
from common import check, skipped
from safetensors.numpy import load_file


def run(lapidary, x, dictionaries):
    atoms = load_file(dictionaries["topk"] / "dictionary.safetensors")["w_dec"]
    out = lapidary.work / "vectors"
    report = lapidary("export", "--dictionary", dictionaries["topk"], "--format", "gguf", "--latents", "12,40", "--scale", 2.5,
                      "--out", out, "--overwrite", ok=(0, 2))
    if isinstance(report, str):
        skipped.append(f"consumers: {report.strip()}")
        return
    from gguf import GGUFReader

    reader = GGUFReader(str(next(out.glob("*.gguf"))))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    check(fields["general.architecture"] == "controlvector", "gguf: a control vector")
    [tensor] = reader.tensors
    want = 2.5 * (atoms[12] + atoms[40])
    check(tensor.name == "direction.3" and np.abs(tensor.data - want).max() < 1e-6, "gguf: direction.3 is the scaled sum of two atoms")

    for form in ["parquet", "npz", "csv"]:
        out = lapidary.work / f"table-{form}"
        lapidary("export", "--dictionary", dictionaries["topk"], "--format", form, "--out", out, "--overwrite")
        file = next(out.glob(f"*.{form}"))
        if form == "parquet":
            table = pq.read_table(file)
            got = np.array(table["w_dec"].to_pylist(), np.float32)
        elif form == "npz":
            got = np.load(file)["w_dec"]
        else:
            rows = list(csv.reader(file.open()))
            check(rows[0][0] == "latent", "csv: header")
            got = np.array([r[-32:] for r in rows[1:]], np.float32)
        check(np.array_equal(got, atoms), f"{form}: atoms are ours, bit for bit")
    delphi(lapidary)


def delphi(lapidary):
    """A cache of the built-in host's rows, as delphi's buffer loads it (or, without delphi, as safetensors holds it)."""
    work = lapidary.work
    lapidary("harvest", "--model", "fable", "--corpus", "fable", "--hook", "blocks.1.hook_resid_post", "--n-tokens", 6_000, "--held-out", 0.3,
             "--out", work / "fable", "--overwrite")
    lapidary("train", "--shards", work / "fable", "--d-sae", 128, "--k", 4, "--batch", 256, "--n-tokens", 10_000, "--out", work / "fable-d",
             "--overwrite")
    report = lapidary("export", "--dictionary", work / "fable-d", "--format", "delphi", "--shards", work / "fable", "--context", 32, "--out",
                      work / "delphi", "--overwrite")
    cache = work / "delphi" / "latents" / "layers.1"
    files = sorted(cache.glob("*.safetensors"), key=lambda f: int(f.stem.split("_")[0]))
    try:
        from delphi.latents.loader import TensorBuffer
    except ImportError as e:
        skipped.append(f"delphi's own loader: {e}")
        TensorBuffer = None
    codes, latents = 0, set()
    for f in files:
        first = int(f.stem.split("_")[0])
        raw = load_file(f)
        codes += len(raw["activations"])
        latents |= set((raw["locations"][:, 2].astype(int) + first).tolist())
        check((raw["activations"] > 0).all() and raw["tokens"].shape[1] == 32, f"delphi: {f.name}")
        if TensorBuffer is not None:
            locations, activations, tokens = TensorBuffer(str(f), "layers.1").load()
            got = sorted(zip(*[locations[:, i].tolist() for i in range(3)], activations.float().tolist()))
            want = sorted(zip(raw["locations"][:, 0].tolist(), raw["locations"][:, 1].tolist(),
                              (raw["locations"][:, 2].astype(int) + first).tolist(), raw["activations"].astype(np.float32).tolist()))
            check(got == want and tokens.shape == raw["tokens"].shape, f"delphi: TensorBuffer loads {len(got)} codes of {f.name}")
    check(codes == report["codes"] and max(latents) < 128, f"delphi: {codes} codes of {len(latents)} latents in {len(files)} files")
