"""dictionary_learning's own loader takes each kind that it has, and its classes encode and decode as we do."""

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
