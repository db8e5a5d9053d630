"""Dictionaries that SAELens makes, with random weights, biases and norms, are imported and encode as SAELens does: every architecture,
every normalisation of rows, and the flat configurations of versions 3 to 5."""

import itertools
import json

import numpy as np
import sae_lens
import torch
from common import same
from safetensors.torch import save_file


def randomised(sae, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            value = torch.randn(p.shape, generator=generator)
            if name == "threshold":
                value = value.abs() * 0.7 - 0.2
            elif name == "r_mag":
                value = 0.3 * value
            elif name == "W_dec" and "MatchingPursuit" in type(sae).__name__:
                value = value / value.norm(dim=1, keepdim=True)
            elif name.startswith("W_"):
                value = value / p.shape[0] ** 0.5
            p.copy_(value)
    return sae


def both(sae, x):
    rows = torch.from_numpy(x)
    with torch.no_grad():
        codes = sae.encode(rows)
        codes = codes.to_dense() if codes.is_sparse else codes
        # A skip transcoder decodes with its input.
        decoded = sae(rows) if "Transcoder" in type(sae).__name__ else sae.decode(codes)
        return codes.numpy(), decoded.numpy()


def kinds():
    plain = [
        (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
        (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": False}),
        (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
        (sae_lens.AbsTopKSAE, sae_lens.AbsTopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
        (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
        (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
        (sae_lens.MatchingPursuitSAE, sae_lens.MatchingPursuitSAEConfig, {"residual_threshold": 1.5, "max_iterations": 6, "stop_on_duplicate_support": True}),
    ]
    for (cls, config, keys), centred, norm in itertools.product(plain, [True, False], ["none", "layer_norm", "constant_norm_rescale"]):
        yield cls, config, {**keys, "apply_b_dec_to_input": centred, "normalize_activations": norm}
    for name in ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"]:
        yield getattr(sae_lens, name), getattr(sae_lens, name + "Config"), {"d_out": 20, "apply_b_dec_to_input": False}


def run(lapidary, x, _):
    # Rows as large as layer norm makes them.
    x = (4 * x + 0.5).astype(np.float32)
    np.save(lapidary.work / "x-reads.npy", x)
    for i, (cls, config, keys) in enumerate(kinds()):
        sae = randomised(cls(config(d_in=32, d_sae=48, dtype="float32", device="cpu", **keys)), i)
        folder = lapidary.work / f"reads-{i}"
        sae.save_model(str(folder))
        label = f"{cls.__name__} {' '.join(str(v) for v in keys.values())}"
        same(label, both(sae, x), lapidary.codes(lapidary.imported(folder, f"reads-{i}-ours"), "x-reads.npy"), 2e-5)

    flat = {"d_in": 32, "d_sae": 48, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small", "hook_layer": 4,
            "hook_head_index": None, "prepend_bos": True, "context_size": 128, "finetuning_scaling_factor": False,
            "sae_lens_training_version": "4.4.5", "apply_b_dec_to_input": True}
    for i, keys in enumerate([
        {"architecture": "standard", "activation_fn_str": "relu", "hook_name": "blocks.4.hook_resid_pre", "normalize_activations": "none"},
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "hook_name": "blocks.4.hook_resid_pre"},
        {"architecture": "jumprelu", "activation_fn": "relu", "hook_point": "blocks.4.hook_resid_pre", "normalize_activations": False},
        {"architecture": "gated", "activation_fn_str": "relu", "hook_name": "blocks.4.hook_resid_pre", "normalize_activations": "layer_norm"},
    ]):
        folder = lapidary.work / f"flat-{i}"
        folder.mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(i)
        random = lambda *shape: torch.randn(*shape, generator=generator) / shape[0] ** 0.5  # noqa: E731
        weights = {"W_enc": random(32, 48), "W_dec": random(48, 32), "b_dec": random(32)}
        if keys["architecture"] == "gated":
            weights |= {"b_gate": random(48), "b_mag": random(48), "r_mag": random(48)}
        else:
            weights["b_enc"] = random(48)
        if keys["architecture"] == "jumprelu":
            weights["threshold"] = random(48).abs()
        if "topk" in keys.values():
            weights["scaling_factor"] = torch.ones(48)
        save_file(weights, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps({**flat, **keys}))
        if "scaling_factor" in weights:
            (folder / "theirs").mkdir(exist_ok=True)
            save_file({k: v for k, v in weights.items() if k != "scaling_factor"}, folder / "theirs" / "sae_weights.safetensors")
            (folder / "theirs" / "cfg.json").write_text(json.dumps({**flat, **keys}))
        sae = sae_lens.SAE.load_from_disk(str(folder / "theirs" if "scaling_factor" in weights else folder), device="cpu")
        same(f"flat configuration {keys['architecture']} {keys.get('activation_fn_str', '')}", both(sae, x),
             lapidary.codes(lapidary.imported(folder, f"flat-{i}-ours"), "x-reads.npy"), 2e-5)
