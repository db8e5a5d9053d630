r"""Other libraries' SAE trainers on the rows of Lapidary shards: same rows, same number of tokens and batch, one JSON line per run.

    pip install dictionary-learning==0.1.0 overcomplete==0.3.0 sae-lens==6.54.12 pyarrow numpy     # only those whose trainers are asked for
    lapidary harvest --model MODEL --corpus CORPUS --hook blocks.2.hook_resid_post --out SHARDS
    python variants.py --shards SHARDS --column blocks.2.hook_resid_post --d-sae 1024 --trainer batch-topk --sparsity 16 \
        --lr 1e-3,2e-3,4e-3,8e-3 --seeds 0 --out results.jsonl

`--sparsity` is what sets sparsity in the trainer: k (topk, batch-topk, matryoshka, mp, saelens-mp), the target L0 (jump-relu), or the
coefficient of the L0 (saelens-jump-relu) or L1 penalty (gated, standard, standard-april). Lists are comma-separated; all combinations
are run.

Held-out rows are those of the shards. `fvu` is sum |x - xhat|^2 / sum |x - mean x|^2 in float64 over all of them, `l0` the mean number of
non-zero codes, `dead` the number of latents that fire on none of them; `train_*` the same over the first 100,000 training rows, by which
settings should be chosen. All are by the library's own inference rule. BatchTopK trainers also give `rules`: `batch` keeps the k n largest
of each block of 512 rows, as in training; `calibrated` is a threshold that leaves k per row on 16,384 training rows.

Each library keeps its own initialisation, loss, optimiser, clipping and constants, but for what is in proportion to a run's length:
learning-rate warm-up (`--warmup`) and decay (`--decay`), sparsity warm-up (`--sparsity-warmup`), the rows after which a latent counts as
dead (`--dead-after`; the libraries' 10 M would never be reached), start (`--warmup`) and memory (`--threshold-beta`) of the running
threshold.
Rows are scaled by one scalar to mean squared norm 1, as dictionary_learning's `normalize_activations` does, for overcomplete and SAELens to
mean squared norm d_in (about what SAELens' `expected_average_only_in` does); `--norm2` overrides. FVU does not see the scale; penalties
and thresholds do.
"""

import argparse
import glob
import importlib.metadata
import itertools
import json
import time

import numpy as np
import pyarrow.parquet as pq
import torch


def rows(shards, split, column):
    parts = []
    for path in sorted(glob.glob(f"{shards}/{split}-*.parquet")):
        col = pq.read_table(path, columns=[column]).column(0).combine_chunks()
        width = col.type.list_size
        parts.append(col.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width))
    return np.concatenate(parts)


def batches(train, steps, size, seed):
    """The same rows in the same order for every library."""
    generator, at = torch.Generator().manual_seed(seed + 1000), len(train)
    for _ in range(steps):
        if at + size > len(train):
            order, at = torch.randperm(len(train), generator=generator), 0
        yield train[order[at : at + size]]
        at += size


@torch.no_grad()
def score(encode, decode, x, block=4096):
    mean, d = x.double().mean(0), None
    error = total = active = 0.0
    for chunk in x.split(block):
        z = encode(chunk)
        fired = (z != 0).any(0)
        d = fired if d is None else d | fired
        active += (z != 0).sum().item()
        error += (chunk.double() - decode(z).double()).pow(2).sum().item()
        total += (chunk.double() - mean).pow(2).sum().item()
    return {"fvu": error / total, "l0": active / len(x), "dead": int((~d).sum())}


class Schedule:
    """Linear warm-up, constant, linear decay to zero, as a factor of the learning rate: dictionary_learning's shape, for all."""

    def __init__(self, a, steps):
        self.steps, self.warm, self.down = steps, max(1, round(steps * a.warmup)), int(steps * (1 - a.decay))
        if a.decay == 0:
            self.down = steps

    def __call__(self, step):
        up = min(step / self.warm, 1.0)
        return up if step < self.down else up * (self.steps - step) / (self.steps - self.down)


def dictionary_learning(a, name, d_in, steps, sparsity, lr, seed):
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, standard, top_k

    shape = Schedule(a, steps)
    common = dict(
        steps=steps, activation_dim=d_in, dict_size=a.d_sae, layer=0, lm_name="none", lr=lr, seed=seed, device="cpu",
        warmup_steps=shape.warm, decay_start=shape.down if a.decay else None,
    )
    if name in ("topk", "batch-topk", "matryoshka"):
        common |= dict(k=int(sparsity), threshold_beta=a.threshold_beta, threshold_start_step=shape.warm)
    else:
        common |= dict(sparsity_warmup_steps=max(1, round(steps * a.sparsity_warmup)))
    if name == "topk":
        trainer = top_k.TopKTrainer(**common)
    elif name == "batch-topk":
        trainer = batch_top_k.BatchTopKTrainer(**common)
    elif name == "matryoshka":
        widths = [int(w) for w in a.prefixes.split(",")] if a.prefixes else [a.d_sae // n for n in (16, 8, 4, 2, 1)]
        fractions = [(w - v) / a.d_sae for v, w in zip([0] + widths, widths)]
        trainer = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(group_fractions=fractions, **common)
    elif name == "jump-relu":
        trainer = jumprelu.JumpReluTrainer(target_l0=sparsity, bandwidth=a.bandwidth or 0.001, **common)
    else:
        kinds = {"gated": gdm.GatedSAETrainer, "standard": standard.StandardTrainer, "standard-april": standard.StandardTrainerAprilUpdate}
        trainer = kinds[name](l1_penalty=sparsity, **common)
    if hasattr(trainer, "dead_feature_threshold"):
        trainer.dead_feature_threshold = a.dead_after * a.n_tokens

    def train(data):
        for step, x in enumerate(data):
            trainer.update(step, x)

    return trainer.ae, train, trainer.ae.encode, trainer.ae.decode


def overcomplete(a, name, d_in, steps, sparsity, lr, seed):
    from overcomplete.sae import MpSAE, train_sae

    class Gathered(MpSAE):
        """The same pursuit and the same gradients without a dense one-hot product per step: several times faster on a CPU."""

        def encode(self, x):
            atoms = self.get_dictionary()
            residual, codes = x, x.new_zeros(len(x), self.nb_concepts)
            for _ in range(self.k):
                with torch.no_grad():
                    pick = (residual @ atoms.T).argmax(1)
                chosen = atoms[pick]
                value = (residual * chosen).sum(1, keepdim=True)
                codes = codes.scatter_add(1, pick[:, None], value)
                residual = residual - value * chosen
            return residual, codes

    model = (Gathered if a.gather else MpSAE)(d_in, nb_concepts=a.d_sae, k=int(sparsity))
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, Schedule(a, steps))

    def criterion(x, x_hat, residual, codes, dictionary):
        # The library's documentation recommends this term for MpSAE: atoms that the batch left unused are drawn to the mean residual.
        loss = (x - x_hat).pow(2).mean()
        unused = (codes.amax(0) < 1e-2).detach()
        if a.revive and unused.sum() > 10:
            loss = loss - a.revive * (residual @ dictionary[unused].T).mean()
        return loss

    def train(data):
        train_sae(model, data, criterion, optimiser, scheduler=scheduler, nb_epochs=1, monitoring=0)
        model.eval()

    return model, train, lambda x: model.encode(x)[1], model.decode


def sae_lens(a, name, d_in, steps, sparsity, lr, seed):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shape = Schedule(a, steps)
    if name == "saelens-mp":
        cfg = MatchingPursuitTrainingSAEConfig(d_in, a.d_sae, max_iterations=int(sparsity), decoder_init_norm=1.0)
        sae = MatchingPursuitTrainingSAE(cfg)
    else:
        own = {"jumprelu_bandwidth": a.bandwidth} if a.bandwidth else {}
        warm = max(1, round(steps * a.sparsity_warmup))
        sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in, a.d_sae, l0_coefficient=sparsity, l0_warm_up_steps=warm, **own))

    def train(data):
        plan = SAETrainerConfig(
            total_training_samples=steps * a.batch, train_batch_size_samples=a.batch, lr=lr, lr_end=0.0,
            lr_warm_up_steps=shape.warm, lr_decay_steps=steps - shape.down,
        )
        SAETrainer(plan, sae, data).fit()

    return sae, train, sae.encode, sae.decode


LIBRARIES = {name: dictionary_learning for name in ("topk", "batch-topk", "matryoshka", "jump-relu", "gated", "standard", "standard-april")}
LIBRARIES |= {"mp": overcomplete, "saelens-mp": sae_lens, "saelens-jump-relu": sae_lens}
PACKAGE = {dictionary_learning: "dictionary-learning", overcomplete: "overcomplete", sae_lens: "sae-lens"}


def batch_rules(ae, k, train, held):
    """BatchTopK codes with k per row on average, without the running threshold."""
    codes = lambda x: ae.encode(x, use_threshold=False)
    pre = ae.encode(train[:16384], return_active=True, use_threshold=False)[2]
    cut = pre.flatten().topk(k * len(pre)).values[-1].item()

    def above(x):
        z = ae.encode(x, return_active=True, use_threshold=False)[2]
        return z * (z >= cut)

    out = {"batch": score(codes, ae.decode, held, 512), "calibrated": score(above, ae.decode, held)}
    return {**out, "train_batch": score(codes, ae.decode, train[:100_000], 512)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shards", required=True)
    p.add_argument("--column", required=True)
    p.add_argument("--trainer", required=True, choices=sorted(LIBRARIES))
    p.add_argument("--d-sae", type=int, required=True)
    p.add_argument("--sparsity", default="16")
    p.add_argument("--lr", default="2e-3")
    p.add_argument("--seeds", default="0")
    p.add_argument("--n-tokens", type=int, default=1_000_000)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--warmup", type=float, default=0.02, help="share of the run")
    p.add_argument("--decay", type=float, default=0.2, help="share of the run, at its end; 0: none")
    p.add_argument("--sparsity-warmup", type=float, default=0.05, help="share of the run")
    p.add_argument("--dead-after", type=float, default=0.05, help="share of the run; above 1: never")
    p.add_argument("--threshold-beta", type=float, default=0.99)
    p.add_argument("--bandwidth", type=float, help="JumpReLU's; the library's own unless given")
    p.add_argument("--prefixes", help="Matryoshka's widths, the last one d_sae; 1/16, 1/8, 1/4, 1/2 and all of it unless given")
    p.add_argument("--revive", type=float, default=1e-2, help="coefficient of mp's term for unused atoms; 0: none")
    p.add_argument("--gather", action="store_true", help="mp: evaluate the library's pursuit by gathers; `seconds` is then not its own")
    p.add_argument("--norm2", type=float, help="mean squared norm that rows are scaled to")
    p.add_argument("--centre", action="store_true", help="subtract the mean of the training rows first")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", help="append here too")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    library = LIBRARIES[a.trainer]
    train, held = rows(a.shards, "train", a.column), rows(a.shards, "held-out", a.column)
    d_in = train.shape[1]
    if a.centre:
        mean = train.mean(0, dtype=np.float64).astype(np.float32)
        train, held = train - mean, held - mean
    norm2 = a.norm2 or (1.0 if library is dictionary_learning else float(d_in))
    scale = np.float32(np.sqrt(norm2 / (train.astype(np.float64) ** 2).sum(1).mean()))
    train, held = torch.from_numpy(train * scale), torch.from_numpy(held * scale)
    steps = -(-a.n_tokens // a.batch)
    lists = ([float(v) for v in s.split(",")] for s in (a.sparsity, a.lr))
    for sparsity, lr, seed in itertools.product(*lists, map(int, a.seeds.split(","))):
        torch.manual_seed(seed)
        model, fit, encode, decode = library(a, a.trainer, d_in, steps, sparsity, lr, seed)
        started = time.time()
        fit(batches(train, steps, a.batch, seed))
        seconds = time.time() - started
        line = {
            "tool": PACKAGE[library], "version": importlib.metadata.version(PACKAGE[library]), "trainer": a.trainer, "sparsity": sparsity,
            "lr": lr, "seed": seed, **score(encode, decode, held),
            **{f"train_{key}": value for key, value in score(encode, decode, train[:100_000]).items()},
            "seconds": round(seconds, 1), "norm2": norm2, "centred": a.centre, "warmup": a.warmup, "decay": a.decay,
        }
        if a.trainer in ("batch-topk", "matryoshka"):
            with torch.no_grad():
                line["rules"] = batch_rules(model, int(sparsity), train, held)
            line |= {"dead_after": a.dead_after, "threshold_beta": a.threshold_beta, "prefixes": a.prefixes}
        if a.trainer == "topk":
            line["dead_after"] = a.dead_after
        if a.trainer == "mp":
            line |= {"revive": a.revive, "gather": a.gather}
        if a.trainer in ("jump-relu", "saelens-jump-relu"):
            line["bandwidth"] = a.bandwidth
        if a.trainer in ("jump-relu", "saelens-jump-relu", "gated", "standard", "standard-april"):
            line["sparsity_warmup"] = a.sparsity_warmup
        text = json.dumps(line)
        print(text, flush=True)
        if a.out:
            with open(a.out, "a") as f:
                f.write(text + "\n")


if __name__ == "__main__":
    main()
