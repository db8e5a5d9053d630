"""From tool to tool and back: the same dictionary to float rounding."""

import numpy as np
from common import same
from safetensors.numpy import load_file


def run(lapidary, x, dictionaries):
    start = lapidary.imported(lapidary.export(dictionaries["topk"], "sparsify", "chain-sparsify"), "chain-1")
    chain, at = ["sparsify"], start
    for form in ["saelens", "dictionary-learning", "saelens", "sparsify"]:
        folder = lapidary.export(at, form, f"chain-{len(chain)}-{form}")
        if folder is None:
            continue
        at = lapidary.imported(folder, f"chain-{len(chain)}-{form}-back")
        chain.append(form)
    same(" -> ".join(chain), lapidary.codes(at), lapidary.codes(dictionaries["topk"]))
    first, last = (load_file(d / "dictionary.safetensors") for d in (start, at))
    worst = max(np.abs(first[n] - last[n]).max() for n in first)
    assert set(first) == set(last) and worst < 1e-6, worst
