"""Llama Scope, its R1-Distill release and Gemma Scope 2, in files of random weights: ours are read as SAELens' own loaders read them."""

import json
from unittest import mock

import sae_lens
import torch
from common import same
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file


def made(seed, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(*shape, generator=generator) / shape[0] ** 0.5 for name, shape in shapes.items()}


def theirs(loader, folder, scale=None, **patches):
    """A dictionary through SAELens' loader of hub files, whose downloads are of `folder`."""

    def local(repo_id, filename, subfolder=None, **_):
        path = folder.parent / (f"{subfolder}/{filename}" if subfolder else filename)
        return str(path)

    with mock.patch.multiple(loaders, hf_hub_download=local, **patches):
        cfg, state, _ = loader("repo", folder.name, device="cpu", cfg_overrides={"dtype": "float32", "device": "cpu"})
    cfg = loaders.handle_config_defaulting(cfg)
    cls, config = sae_lens.registry.get_sae_class(cfg["architecture"])
    sae = cls(config.from_dict({k: v for k, v in cfg.items()}))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    return sae


def both(sae, x):
    rows = torch.from_numpy(x)
    with torch.no_grad():
        codes = sae.encode(rows)
        return codes.numpy(), sae(rows).numpy()


def run(lapidary, x, _):
    d, f, norm = 32, 64, 7.5
    hook = "blocks.3.hook_resid_post"
    scale = d**0.5 / norm

    folder = lapidary.work / "scope" / "layer_3_old"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    weights = made(1, encoder__weight=(f, d), encoder__bias=(f,), decoder__weight=(d, f), decoder__bias=(d,))
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({
        "d_model": d, "d_sae": f, "expansion_factor": 2, "hook_point_in": hook, "hook_point_out": hook, "act_fn": "jumprelu", "jump_relu_threshold": 0.4,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm}, "use_decoder_bias": True,
        "sparsity_include_decoder_norm": True, "apply_decoder_bias_to_pre_encoder": False}))
    sae = theirs(loaders.llama_scope_sae_huggingface_loader, folder, scale)
    same("Llama Scope", both(sae, x), lapidary.codes(lapidary.imported(folder, "scope-old")))

    folder = lapidary.work / "scope" / "layer_3_r1"
    folder.mkdir(parents=True, exist_ok=True)
    weights = made(2, encoder__weight=(f, d), encoder__bias=(f,), decoder__weight=(d, f), decoder__bias=(d,), log_jumprelu_threshold=(f,))
    save_file({**weights, "dataset_average_activation_norm.in": torch.tensor(norm)}, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "sae_type": "sae", "d_model": d, "expansion_factor": 2, "hook_point_in": hook, "hook_point_out": hook, "act_fn": "jumprelu",
        "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False}))
    sae = theirs(loaders.llama_scope_r1_distill_sae_huggingface_loader, folder, scale)
    same("Llama Scope R1-Distill", both(sae, x), lapidary.codes(lapidary.imported(folder, "scope-r1")))

    for name, out in [("layer_3_resid_post", d), ("layer_3_transcoder", 20)]:
        folder = lapidary.work / "scope" / name
        folder.mkdir(parents=True, exist_ok=True)
        weights = made(3, w_enc=(d, f), b_enc=(f,), w_dec=(f, out), b_dec=(out,), threshold=(f,))
        weights["threshold"] = weights["threshold"].abs()
        if out != d:
            weights |= made(4, affine_skip_connection=(d, out))
        save_file(weights, folder / "params.safetensors")
        (folder / "config.json").write_text(json.dumps({
            "architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "hf_hook_point_in": "model.layers.3.output",
            "hf_hook_point_out": "model.layers.3.output", "affine_connection": out != d}))
        shapes = {k: list(v.shape) for k, v in weights.items()}
        sae = theirs(loaders.gemma_3_sae_huggingface_loader, folder, get_safetensors_tensor_shapes=lambda *_, shapes=shapes: shapes)
        same(f"Gemma Scope 2 {name}", both(sae, x), lapidary.codes(lapidary.imported(folder, f"scope-{name}")))
