"""OpenAI files, loaded without code execution, give our codes by the formula of their forward; files saved as theirs are import's too."""

import torch
from common import check, same


def forward(state, rows):
    """Layer norm if and only if the activation is TopK."""
    top_k = state["activation"] == "TopK"
    mean, sd = (rows.mean(1, keepdim=True), rows.std(1, keepdim=True)) if top_k else (0.0, 1.0)
    u = (rows - mean) / (sd + 1e-5) if top_k else rows
    codes = (u - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    if top_k:
        top = codes.topk(state["activation_state_dict"]["k"], dim=1)
        codes = torch.zeros_like(codes).scatter(1, top.indices, top.values)
    codes = codes.relu()
    return codes.numpy(), ((codes @ state["decoder.weight"].T + state["pre_bias"]) * sd + mean).numpy()


def exported(lapidary, dictionary, name, activation, rows):
    folder = lapidary.export(dictionary, "openai", name)
    saved = sorted(folder.rglob("*.pt"))
    check(len(saved) == 1, f"{name}: one file")
    state = torch.load(saved[0], weights_only=True)
    check(state["activation"] == activation, f"{name}: activation {state['activation']}")
    same(name, forward(state, rows), lapidary.codes(dictionary))


def run(lapidary, x, dictionaries):
    rows = torch.from_numpy(x)
    exported(lapidary, dictionaries["relu"], "openai-relu", "ReLU", rows)
    # Top-k comes with a layer norm, which none of ours has: one of theirs, in and out.
    torch.manual_seed(0)
    d, n = x.shape[1], 64
    state = {
        "pre_bias": 0.1 * torch.randn(d), "latent_bias": 0.1 * torch.randn(n), "encoder.weight": torch.randn(d, n).T / d**0.5,
        "decoder.weight": torch.randn(n, d).T / d**0.5, "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
        "latents_activation_frequency": torch.ones(n), "latents_mean_square": torch.zeros(n), "activation": "TopK",
        "activation_state_dict": {"k": 4, "postact_fn": "ReLU"},
    }
    folder = lapidary.work / "resid_post_mlp_v5_32k" / "autoencoders"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "8.pt")
    imported = lapidary.imported(folder / "8.pt", "imported-openai")
    same("imported from openai", lapidary.codes(imported), forward(state, rows))
    exported(lapidary, imported, "openai-topk", "TopK", rows)
