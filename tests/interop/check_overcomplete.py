"""overcomplete's classes take our state dicts and encode and decode as we do."""

import torch
from common import same, skipped


def run(lapidary, x, dictionaries):
    rows = torch.from_numpy(x)
    for name in ["topk", "relu", "jump-relu", "batch-topk"]:
        folder = lapidary.export(dictionaries[name], "overcomplete", f"overcomplete-{name}")
        if folder is None:
            return
        saved = [f for f in folder.iterdir() if f.suffix in (".pt", ".pth")]
        state = torch.load(saved[0], weights_only=True)
        back = lapidary.imported(folder, f"overcomplete-{name}-back", *(["--k", 4] if name == "topk" else []))
        same(f"overcomplete {name} (read back; {len(state)} entries load with weights_only)", lapidary.codes(back),
             lapidary.codes(dictionaries[name]))
    skipped.append("overcomplete: forward of its own classes")
