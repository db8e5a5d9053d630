"""sparsify loads a top-k dictionary and encodes and decodes as we do."""

import warnings

import numpy as np
import torch
from common import check, same
from sparsify import SparseCoder, SparseCoderConfig


def dense(sae, x):
    """Codes [n, num_latents] and what they decode to."""
    with torch.no_grad():
        rows = torch.from_numpy(x)
        top = sae.encode(rows)
        codes = np.zeros((len(x), sae.num_latents), np.float32)
        np.put_along_axis(codes, top.top_indices.numpy(), top.top_acts.numpy(), 1)
        decoded = sae.decode(top.top_acts, top.top_indices)
        if sae.W_skip is not None:
            decoded = decoded + rows @ sae.W_skip.mT
        return codes, decoded.numpy()


def run(lapidary, x, dictionaries):
    # What the library makes, transcoders and skip paths included, is read as it encodes.
    for i, (transcode, skip) in enumerate([(False, False), (True, False), (True, True)]):
        torch.manual_seed(i)
        sae = SparseCoder(32, SparseCoderConfig(num_latents=48, k=5, transcode=transcode, skip_connection=skip), device="cpu")
        with torch.no_grad():
            for p in [sae.encoder.bias, sae.b_dec, *([sae.W_skip] if skip else [])]:
                p.copy_(0.3 * torch.randn(p.shape))
        sae.save_to_disk(str(lapidary.work / f"sparsify-{i}" / "layers.3"))
        ours = lapidary.imported(lapidary.work / f"sparsify-{i}", f"sparsify-{i}-ours")
        same(f"sparsify transcode {transcode} skip {skip}", dense(sae, x), lapidary.codes(ours))
        folder = lapidary.export(ours, "sparsify", f"sparsify-{i}-back")
        same(f"sparsify transcode {transcode} skip {skip} written", dense(SparseCoder.load_from_disk(str(folder), device="cpu"), x), lapidary.codes(ours))

    folder = lapidary.export(dictionaries["topk"], "sparsify", "layers.3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae = SparseCoder.load_from_disk(str(folder), device="cpu")
    check((sae.num_latents, sae.cfg.k) == (64, 4), "sparsify topk: width and k")
    found = dense(sae, x)
    same("sparsify topk", found, lapidary.codes(dictionaries["topk"]))

    # What it saves itself is read back the same.
    sae.save_to_disk(str(lapidary.work / "saved" / "layers.3"))
    same("sparsify saved again", found, lapidary.codes(lapidary.imported(lapidary.work / "saved", "sparsify-back")))
