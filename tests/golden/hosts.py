"""Writes tiny random models of every host family and what Hugging Face transformers computes with them.

    python tests/golden/hosts.py tests/golden/hosts          the files that the tests read
    python tests/golden/hosts.py /tmp/hosts --copies 5       more of them: other seeds, the same options

Each case is a folder with config.json, model.safetensors and golden.safetensors, where `out.PATH` is the output of the module PATH,
`ids` and `mask` the inputs (right-padded rows have zeros in the mask; their padding is not to be compared), `logits` the logits.
Made with transformers 5.23.0 and torch 2.15.0, float32, eager attention, on the CPU.
"""

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file

TINY = dict(vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
SLIDING, FULL = "sliding_attention", "full_attention"


def rope(kind, theta=10_000.0, **options):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **options))


def cases():
    """name -> (configuration class, options, how to change the saved config.json)"""
    t = transformers
    llama = lambda **o: (t.LlamaConfig, dict(TINY, num_key_value_heads=2, max_position_embeddings=64, head_dim=8, **o))
    yield "llama-bias", *llama(attention_bias=True, mlp_bias=True), None
    yield "llama-one-kv-head", t.LlamaConfig, dict(TINY, num_key_value_heads=1, tie_word_embeddings=True, hidden_act="gelu"), None
    yield "llama-linear", *llama(**rope("linear", 500.0, factor=2.5)), None
    yield "llama-linear-old", *llama(**rope("linear", 500.0, factor=2.5)), old_style
    yield "llama-dynamic", t.LlamaConfig, dict(TINY, head_dim=8, max_position_embeddings=8, **rope("dynamic", factor=4.0)), None
    yield "llama-yarn", *llama(**rope("yarn", factor=4.0, original_max_position_embeddings=16)), None
    scales = dict(mscale=1.0, mscale_all_dim=0.8, beta_fast=8.0, beta_slow=0.5, truncate=False)
    yield "llama-yarn-scales", *llama(**rope("yarn", factor=4.0, original_max_position_embeddings=16, **scales)), old_style
    bands = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    yield "llama-llama3", *llama(**rope("llama3", 100.0, factor=8.0, **bands)), old_style

    mistral = lambda **o: (t.MistralConfig, dict(TINY, num_key_value_heads=2, **o))
    yield "mistral-window", *mistral(sliding_window=5, head_dim=8), None
    yield "mistral-full", *mistral(sliding_window=None), old_style

    qwen = lambda **o: dict(TINY, num_key_value_heads=2, **o)
    yield "qwen2-window", t.Qwen2Config, qwen(use_sliding_window=True, sliding_window=4, max_window_layers=1), drop("layer_types")
    yield "qwen2-layers", t.Qwen2Config, qwen(use_sliding_window=True, sliding_window=4, layer_types=[SLIDING, FULL, FULL]), None
    yield "qwen2-unused-window", t.Qwen2Config, qwen(use_sliding_window=False, sliding_window=4), old_style
    yield "qwen3", t.Qwen3Config, qwen(head_dim=10, **rope("default", 1e6)), None
    yield "qwen3-bias", t.Qwen3Config, qwen(head_dim=6, attention_bias=True, tie_word_embeddings=True), old_style

    yield "gemma", t.GemmaConfig, dict(TINY, num_key_value_heads=1, head_dim=8, hidden_act="gelu"), None
    gemma2 = lambda **o: (t.Gemma2Config, dict(TINY, num_key_value_heads=2, head_dim=8, sliding_window=4, query_pre_attn_scalar=10, **o))
    yield "gemma2", *gemma2(attn_logit_softcapping=3.0, final_logit_softcapping=2.0), old_style
    yield "gemma2-layers", *gemma2(attn_logit_softcapping=None, final_logit_softcapping=None, layer_types=[FULL, SLIDING, FULL]), None
    gemma3 = lambda **o: dict(TINY, num_key_value_heads=2, head_dim=8, sliding_window=4, query_pre_attn_scalar=10, **o)
    ropes = {SLIDING: dict(rope_type="default", rope_theta=50.0), FULL: dict(rope_type="linear", factor=8.0, rope_theta=5000.0)}
    yield "gemma3", t.Gemma3TextConfig, gemma3(layer_types=[SLIDING, FULL, SLIDING], rope_parameters=ropes), None
    yield "gemma3-old", t.Gemma3TextConfig, gemma3(sliding_window_pattern=2, rope_parameters=ropes), gemma3_old_style
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    both = dict(text_config=gemma3(layer_types=[SLIDING, SLIDING, FULL]), vision_config=vision, mm_tokens_per_image=4)
    yield "gemma3-images", t.Gemma3Config, both, None
    yield "gemma3-images-old", t.Gemma3Config, both, gemma3_images_old_style

    phi3 = lambda **o: (t.Phi3Config, dict(TINY, hidden_size=32, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **o))
    yield "phi3-window", *phi3(sliding_window=6), None
    yield "phi3-partial", *phi3(partial_rotary_factor=0.5), None
    long = dict(short_factor=[1.0, 1.1, 1.5, 2.0], long_factor=[1.2, 2.0, 5.0, 9.0])
    context = dict(max_position_embeddings=64, original_max_position_embeddings=16)
    yield "phi3-long", *phi3(**context, **rope("longrope", **long)), None
    context = dict(max_position_embeddings=64, original_max_position_embeddings=32)
    yield "phi3-short-old", *phi3(**context, **rope("longrope", **long)), phi3_old_style

    yield "olmo2", t.Olmo2Config, qwen(), None
    yield "olmo2-bias", t.Olmo2Config, dict(TINY, attention_bias=True, **rope("default", 500.0)), old_style
    starcoder2 = lambda **o: (t.Starcoder2Config, dict(TINY, num_key_value_heads=2, **o))
    yield "starcoder2", *starcoder2(sliding_window=5), None
    yield "starcoder2-no-bias", *starcoder2(use_bias=False, tie_word_embeddings=False), old_style

    neox = lambda **o: (t.GPTNeoXConfig, dict(TINY, hidden_size=24, max_position_embeddings=64, **o))
    yield "gpt-neox-in-turn", *neox(use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new"), old_style
    yield "gpt-neox-odd", *neox(**rope("default", partial_rotary_factor=0.9)), old_style
    yield "gpt-neox-linear", *neox(tie_word_embeddings=True, **rope("linear", factor=3.0, partial_rotary_factor=1.0)), None
    gpt2 = lambda **o: (t.GPT2Config, dict(vocab_size=37, n_embd=16, n_layer=3, n_head=4, n_positions=32, **o))
    yield "gpt2-by-layer", *gpt2(n_inner=20, scale_attn_by_inverse_layer_idx=True, activation_function="relu"), None
    yield "gpt2-unscaled", *gpt2(scale_attn_weights=False, tie_word_embeddings=False, activation_function="gelu"), None


def old_style(config):
    """As the hub's files from before transformers 5."""
    config["torch_dtype"] = config.pop("dtype", "float32")
    config.pop("layer_types", None)
    table = config.pop("rope_parameters", None)
    if table is None:
        return
    theta, part = table.pop("rope_theta", None), table.pop("partial_rotary_factor", None)
    neox = config["model_type"] == "gpt_neox"
    if theta is not None:
        config["rotary_emb_base" if neox else "rope_theta"] = theta
    if part is not None and (neox or part != 1.0):
        config["rotary_pct" if neox else "partial_rotary_factor"] = part
    kind = table.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else dict(type=kind, **table)


def phi3_old_style(config):
    old_style(config)
    config["rope_scaling"]["type"] = "su"
    config["rope_scaling"].pop("original_max_position_embeddings", None)


def gemma3_old_style(config):
    ropes = config.pop("rope_parameters")
    config["rope_local_base_freq"] = ropes[SLIDING]["rope_theta"]
    config["rope_theta"] = ropes[FULL].pop("rope_theta")
    config["rope_scaling"] = ropes[FULL]
    config.pop("layer_types")
    config["sliding_window_pattern"] = 2
    config.pop("_sliding_window_pattern", None)


def gemma3_images_old_style(config):
    text = config["text_config"]
    text.pop("rope_parameters")
    # The hub's files leave out what the class has by default.
    for key in ("attention_bias", "hidden_activation", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        text.pop(key)


def drop(key):
    return lambda config: config.pop(key)


def randomise(model, generator):
    gemma = "gemma" in model.config.model_type
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or ".ln_" in name:
            centre = 0.0 if gemma or name.endswith("bias") else 1.0
            parameter.data = centre + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.3 * noise
        elif "embed" in name or "wte" in name or "wpe" in name:
            parameter.data = (0.2 if gemma else 1.0) * noise
        else:
            parameter.data = noise * 1.6 / parameter.shape[0 if "h." in name and "gpt2" == model.config.model_type else -1] ** 0.5
    model.tie_weights()


def write(folder, kind, options, change, seed):
    torch.manual_seed(seed)
    config = kind(**json.loads(json.dumps(options)))
    config._attn_implementation = "eager"
    auto = transformers.AutoModelForImageTextToText if kind is transformers.Gemma3Config else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    randomise(model, generator)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    saved = json.loads((folder / "config.json").read_text())
    if change:
        change(saved)
    (folder / "config.json").write_text(json.dumps(saved, indent=1, sort_keys=True))
    weights = load_file(folder / "model.safetensors")
    if kind is transformers.Gemma3Config:
        # The vision part is not read; the tests need no copy of it.
        weights = {name: tensor for name, tensor in weights.items() if "language_model" in name or "lm_head" in name}
        if change:
            weights = {name.replace("model.language_model.", "language_model.model."): x for name, x in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    t = 17
    ids = torch.randint(3, 37, (2, t), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, t - 5 :] = 0
    golden = {"ids": ids, "mask": mask}
    blocks = ("layers", "h")

    def record(path):
        def hook(_module, _inputs, output):
            golden[f"out.{path}"] = (output[0] if isinstance(output, tuple) else output).detach().contiguous().clone()

        return hook

    wanted = ("self_attn", "attn", "attention", "mlp", "post_attention_layernorm", "post_feedforward_layernorm")
    post_norms = any(path.endswith("post_feedforward_layernorm") for path, _ in model.named_modules())
    for path, module in model.named_modules():
        parts = path.split(".")
        if "vision_tower" in parts:
            continue
        around = parts[-1] in ("embed_tokens", "wte", "embed_in", "norm", "ln_f", "final_layer_norm")
        is_block = len(parts) >= 2 and parts[-2] in blocks and parts[-1].isdigit()
        inside = len(parts) >= 3 and parts[-3] in blocks and parts[-1] in wanted and (post_norms or "layernorm" not in parts[-1])
        if around or is_block or inside:
            module.register_forward_hook(record(path))
    with torch.no_grad():
        golden["logits"] = model(input_ids=ids, attention_mask=mask).logits.contiguous()
    if kind is transformers.GPT2Config:
        golden.pop("out.transformer.wpe", None)
    save_file(golden, folder / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--copies", type=int, default=1)
    arguments = parser.parse_args()
    for copy in range(arguments.copies):
        for index, (name, kind, options, change) in enumerate(cases()):
            folder = arguments.out / (name if copy == 0 else f"{name}-{copy}")
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, kind, options, change, 1000 * copy + index)
            print(folder)


if __name__ == "__main__":
    main()
