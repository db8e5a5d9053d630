"""sparsify loads a top-k dictionary and encodes and decodes as we do."""

import warnings

import numpy as np
import torch
from common import check, same
from sparsify import SparseCoder


def run(lapidary, x, dictionaries):
    folder = lapidary.export(dictionaries["topk"], "sparsify", "layers.3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae = SparseCoder.load_from_disk(str(folder), device="cpu")
    check((sae.num_latents, sae.cfg.k) == (64, 4), "sparsify topk: width and k")
    with torch.no_grad():
        rows = torch.from_numpy(x)
        top = sae.encode(rows)
        dense = np.zeros((len(x), 64), np.float32)
        np.put_along_axis(dense, top.top_indices.numpy(), top.top_acts.numpy(), 1)
        decoded = sae.decode(top.top_acts, top.top_indices).numpy()
    same("sparsify topk", (dense, decoded), lapidary.codes(dictionaries["topk"]))

    # What it saves itself is read back the same.
    sae.save_to_disk(str(lapidary.work / "saved" / "layers.3"))
    same("sparsify saved again", (dense, decoded), lapidary.codes(lapidary.imported(lapidary.work / "saved", "sparsify-back")))
