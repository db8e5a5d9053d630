"""dictionary_learning's own loader takes each kind that it has, and its classes encode and decode as we do; what its classes save is
imported, and encodes as they do."""

import json
import warnings

import torch
from common import check, same


def run(lapidary, x, dictionaries):
    from dictionary_learning.utils import load_dictionary

    classes = {"topk": "AutoEncoderTopK", "batch-topk": "BatchTopKSAE", "matryoshka": "MatryoshkaBatchTopKSAE",
               "jump-relu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder", "relu": "AutoEncoder"}
    rows = torch.from_numpy(x)
    for name, kind in classes.items():
        folder = lapidary.export(dictionaries[name], "dictionary-learning", f"dl-{name}")
        if folder is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ae, config = load_dictionary(str(folder), "cpu")
        check(type(ae).__name__ == kind and config["trainer"]["dict_class"] == kind, f"dictionary_learning {name}: {kind}")
        with torch.no_grad():
            codes = ae.encode(rows)
            decoded = ae.decode(codes)
        same(f"dictionary_learning {name}", (codes.numpy(), decoded.numpy()), lapidary.codes(dictionaries[name]))
    for name, (ae, trainer) in theirs(x).items():
        folder = lapidary.work / f"theirs-{name}"
        folder.mkdir(exist_ok=True)
        torch.save(ae.state_dict(), folder / "ae.pt")
        config = {"trainer": {"dict_class": name, "activation_dim": x.shape[1], "dict_size": 64, "layer": 3, "lm_name": "gpt2", **trainer}}
        (folder / "config.json").write_text(json.dumps(config))
        imported = lapidary.imported(folder, f"imported-{name}")
        with torch.no_grad():
            codes = ae.encode(rows)
            decoded = ae.decode(codes)
        same(f"imported from dictionary_learning: {name}", lapidary.codes(imported), (codes.numpy(), decoded.numpy()))


def theirs(x):
    """An object of each class, its biases and thresholds not zero, and what its configuration has of it."""
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    torch.manual_seed(0)
    d, n = x.shape[1], 64
    all = {
        "AutoEncoder": (AutoEncoder(d, n), {}), "AutoEncoderNew": (AutoEncoderNew(d, n), {}),
        "GatedAutoEncoder": (GatedAutoEncoder(d, n), {}), "JumpReluAutoEncoder": (JumpReluAutoEncoder(d, n), {}),
        "AutoEncoderTopK": (AutoEncoderTopK(d, n, 4), {"k": 4}), "BatchTopKSAE": (BatchTopKSAE(d, n, 4), {"k": 4}),
        "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKSAE(d, n, 4, [16, 16, 32]), {"k": 4}),
    }
    for ae, trainer in all.values():
        with torch.no_grad():
            for key, value in ae.named_parameters():
                if value.ndim == 1:
                    value.add_(0.1 * torch.randn_like(value) + (0.3 if key == "threshold" else 0.0))
        if "k" in trainer:
            ae.threshold.fill_(0.6)
    return all
