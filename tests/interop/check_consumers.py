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
