"""dictionary_learning's TopK trainer on the rows of Lapidary shards: same rows, same schedule, one JSON line per run.

    pip install dictionary-learning pyarrow numpy
    python dictionary_learning_topk.py --shards DIR --column blocks.2.hook_resid_post --d-sae 1024 --k 4,8,16 --lr 1e-3,3e-3 --seeds 0

Rows are scaled by one scalar to mean squared norm 1, as the library's own `normalize_activations` does; FVU does not see the scale.
`train_fvu` is over the first 100,000 training rows, `fvu` over all held-out rows: sum |x - xhat|^2 / sum |x - mean x|^2 in float64.
"""

import argparse
import json
import time

import numpy as np
import torch
from dictionary_learning.trainers.top_k import TopKTrainer
from variants import rows


@torch.no_grad()
def fvu(ae, x):
    mean = x.double().mean(0)
    error = total = 0.0
    for chunk in x.split(8192):
        xhat = ae(chunk)
        error += (chunk.double() - xhat.double()).pow(2).sum().item()
        total += (chunk.double() - mean).pow(2).sum().item()
    return error / total


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shards", required=True)
    p.add_argument("--column", required=True)
    p.add_argument("--d-sae", type=int, required=True)
    p.add_argument("--k", default="16")
    p.add_argument("--lr", default="1e-3")
    p.add_argument("--seeds", default="0")
    p.add_argument("--n-tokens", type=int, default=1_000_000)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    train, held = rows(a.shards, "train", a.column), rows(a.shards, "held-out", a.column)
    scale = 1.0 / np.sqrt((train.astype(np.float64) ** 2).sum(1).mean())
    train, held = torch.from_numpy(train * np.float32(scale)), torch.from_numpy(held * np.float32(scale))
    steps = -(-a.n_tokens // a.batch)
    for k in map(int, a.k.split(",")):
        for lr in map(float, a.lr.split(",")):
            for seed in map(int, a.seeds.split(",")):
                trainer = TopKTrainer(
                    steps=steps, activation_dim=train.shape[1], dict_size=a.d_sae, k=k, layer=0, lm_name="none", lr=lr,
                    warmup_steps=max(1, steps * 2 // 100), decay_start=steps * 8 // 10, seed=seed, device="cpu",
                )
                order, at, started = None, len(train), time.time()
                generator = torch.Generator().manual_seed(seed + 1000)
                for step in range(steps):
                    if at + a.batch > len(train):
                        order, at = torch.randperm(len(train), generator=generator), 0
                    trainer.update(step, train[order[at : at + a.batch]])
                    at += a.batch
                seconds = time.time() - started
                print(json.dumps({
                    "tool": "dictionary_learning", "k": k, "lr": lr, "seed": seed, "train_fvu": fvu(trainer.ae, train[:100_000]),
                    "fvu": fvu(trainer.ae, held), "tokens_per_s": steps * a.batch / seconds,
                }), flush=True)


if __name__ == "__main__":
    main()
