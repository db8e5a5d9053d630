"""SAEBench's core evaluation takes our SAELens export of a dictionary trained on a constructed model."""

import contextlib
import io

import numpy as np
import torch
from common import check, skipped


def run(lapidary, _, dictionaries):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from sae_bench.evals.core import main as core
            from sae_bench.evals.core.eval_config import CoreEvalConfig
            from sae_bench.sae_bench_utils import general_utils
    except ImportError as e:
        skipped.append(f"saebench: {e}")
        return
    from sae_lens import SAE
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    model = HookedTransformer(HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=32, d_head=8, n_heads=4, d_vocab=64, act_fn="gelu", d_mlp=64, device="cpu", seed=0, model_name="constructed"))
    tokens = torch.randint(3, 64, (1500, 16))
    hook = "blocks.1.hook_resid_post"
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=hook)
    rows = cache[hook].reshape(-1, 32).numpy()
    np.save(lapidary.work / "constructed.npy", rows)
    shards = lapidary.work / "constructed-shards"
    lapidary("ingest", "--from", lapidary.work / "constructed.npy", "--hook", hook, "--held-out", 0.05, "--out", shards, "--overwrite")
    lapidary("train", "--shards", shards, "--arch", "topk", "--d-sae", 256, "--k", 8, "--batch", 512, "--lr", "2e-3", "--n-tokens", 200_000,
             "--out", lapidary.work / "constructed-topk", "--overwrite")
    lapidary("export", "--dictionary", lapidary.work / "constructed-topk", "--format", "saelens", "--shards", shards,
             "--host", "constructed", "--out", lapidary.work / "constructed-saelens", "--overwrite")
    score = lapidary("score", "--dictionary", lapidary.work / "constructed-topk", "--shards", shards, "--no-baselines")["metrics"]

    sae = SAE.load_from_disk(str(lapidary.work / "constructed-saelens"), device="cpu")
    _, sae, _ = general_utils.load_and_format_sae("ours", sae, "cpu")

    class Store:
        context_size, store_batch_size_prompts = 16, 8

        def __init__(self):
            self.at = 0

        def get_batch_tokens(self, n=8):
            self.at = (self.at + n) % 1400
            return tokens[self.at : self.at + n]

        def reset_input_dataset(self):
            self.at = 0

    config = CoreEvalConfig(model_name="constructed", batch_size_prompts=8, n_eval_reconstruction_batches=4, n_eval_sparsity_variance_batches=8,
                            dataset="constructed", context_size=16, compute_kl=True, compute_ce_loss=True, compute_l2_norms=True,
                            compute_sparsity_metrics=True, compute_variance_metrics=True, compute_featurewise_density_statistics=True,
                            compute_featurewise_weight_based_metrics=True, llm_dtype="float32")
    metrics, _ = core.run_evals(sae=sae, activation_store=Store(), model=model, eval_config=config, ignore_tokens=set(), verbose=False)
    l0, ev = metrics["sparsity"]["l0"], metrics["reconstruction_quality"]["explained_variance_legacy"]
    kl = metrics["model_behavior_preservation"]["kl_div_score"]
    check(abs(l0 - score["l0"]) < 0.2, f"saebench: L0 {l0:.2f}, ours {score['l0']:.2f}")
    check(abs(ev - (1 - score["fvu"])) < 0.1, f"saebench: explained variance {ev:.3f}, ours {1 - score['fvu']:.3f}")
    check(0.3 < kl <= 1, f"saebench: KL score {kl:.3f}")
