"""SAELens loads each kind of dictionary, warns of nothing, and encodes and decodes as we do."""

import json
import warnings

import torch
from common import check, same
from sae_lens import SAE
from safetensors.torch import load_file


def load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return SAE.load_from_disk(str(folder), device="cpu")


def both(sae, x):
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        codes = codes.to_dense() if codes.is_sparse else codes
        return codes.numpy(), sae.decode(codes).numpy()


def run(lapidary, x, dictionaries):
    kinds = {"topk": "topk", "batch-topk": "jumprelu", "matryoshka": "jumprelu", "mp": "matching_pursuit", "jump-relu": "jumprelu",
             "gated": "gated", "relu": "standard"}
    for name, kind in kinds.items():
        folder = lapidary.export(dictionaries[name], "saelens", f"saelens-{name}")
        sae = load(folder)
        check(sae.cfg.architecture() == kind, f"saelens {name}: architecture {kind}")
        check(sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post", f"saelens {name}: hook point")
        same(f"saelens {name}", both(sae, x), lapidary.codes(dictionaries[name]))
        sparsity = load_file(folder / "sparsity.safetensors")["sparsity"]
        check(sparsity.shape == (64,) and sparsity.max() <= 0, f"saelens {name}: sparsity.safetensors")

    # A prefix of a Matryoshka dictionary.
    folder = lapidary.export(dictionaries["matryoshka"], "saelens", "saelens-prefix", "--prefix", 16)
    whole = json.loads((lapidary.work / "saelens-matryoshka" / "cfg.json").read_text())
    check(whole["metadata"]["training_architecture_details"]["matryoshka_widths"][:2] == [16, 32], "saelens matryoshka: widths are kept")
    sae = load(folder)
    check(sae.cfg.d_sae == 16, "saelens prefix: 16 latents")
    same("saelens prefix", both(sae, x), lapidary.codes(lapidary.imported(folder, "saelens-prefix-back")))

    # What the library saves for inference is read back the same.
    sae = load(lapidary.work / "saelens-gated")
    sae.save_model(str(lapidary.work / "saelens-saved"))
    same("saelens saved again", both(sae, x), lapidary.codes(lapidary.imported(lapidary.work / "saelens-saved", "saelens-saved-back")))
