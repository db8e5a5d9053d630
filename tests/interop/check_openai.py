"""An OpenAI file, loaded without code execution, gives our codes by the formula of their forward."""

import torch
from common import check, same


def run(lapidary, x, dictionaries):
    folder = lapidary.export(dictionaries["topk"], "openai", "openai-topk")
    if folder is None:
        return
    saved = sorted(folder.rglob("*.pt"))
    check(len(saved) == 1, "openai: one file")
    state = torch.load(saved[0], weights_only=True)
    check(state["activation"] in ("TopK", "ReLU"), f"openai: activation {state['activation']}")
    rows = torch.from_numpy(x)
    mean, sd = (rows.mean(1, keepdim=True), rows.std(1, keepdim=True)) if state["activation"] == "TopK" else (0, 1)
    u = (rows - mean) / (sd + 1e-5) if state["activation"] == "TopK" else rows
    pre = (u - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    top = pre.topk(state["activation_state_dict"]["k"], dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    decoded = (codes @ state["decoder.weight"].T + state["pre_bias"]) * sd + mean
    same("openai topk", (codes.numpy(), decoded.numpy()), lapidary.codes(dictionaries["topk"]))
