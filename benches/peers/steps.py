r"""Encodes and training steps of other libraries beside ours, in one run: every program waits in a process of its own, and each round asks
each of them for one timed sample, so that a machine that slows down slows all of them alike. Medians over the rounds, and ratios.

    pip install torch==2.15.0 eai-sparsify==1.3.3 sae-lens==6.54.12 dictionary-learning==0.1.0 overcomplete==0.3.0 numpy
    cargo build --release
    python benches/peers/steps.py --lapidary target/release/lapidary --threads 2 --rounds 7 --out steps
    python benches/peers/steps.py --lapidary target/release/lapidary --cases S --only 'fast|lapidary' --from data/
    python benches/peers/steps.py --lapidary target/release/lapidary --cases S --fvu-tokens 204800 --from data/

Cases: S (d 512, 8192 latents, k 32, batches of 2048), L (d 768, 24576, 32, 4096), MP (matching pursuit: d 512, 8192, 32 steps, 1024),
and tiny ones for trying the script (T, TMP). Per case a table: `encode` (codes of a batch), `step` (a training step as the library's own
trainer does it, no latent dead), `auxk` (the same with every fourth latent dead). A library that is not installed is reported and left
out. `--only REGEX` chooses by `case/program/stage`.

Rows: `--from DIR` with acts_S_d512.npy and acts_L_d768.npy (f32, [rows, d]; MP reads the first), else seeded ones that the script makes.
All see the same rows, a few batches from the beginning, again and again. Everything is f32 but `torch bf16`, which is autocast. Adam at a
constant 1e-3; each library's own start, loss, clipping and normalisation.

The programs: `torch f32` and `torch bf16` are dense eager PyTorch (relu, top-k, scatter, dense decode, autograd, Adam); `fast` is the
same mathematics tuned by hand: oneDNN's linear, embedding_bag as the decoder, written-out sparse gradients by index_add, fused Adam.
overcomplete's `auxk` is its own auxiliary loss (half of the unchosen codes). Of `lapidary`: `unscreened` encodes without the certified screen; `gemm +
quickselect` and `candle arg_sort` are the encode's baselines, dense products and then a selection.

A line of `steps.jsonl` is one sample: wall and CPU milliseconds of the process, and `foreign`, the share of the machine that others used
meanwhile (Linux). `steps.md` has the tables. Memory is the peak of one more step above what the process held before there was a model,
and above parameters and optimiser state.

`--fvu-tokens N` measures quality instead: N rows in file order, then FVU on the last 8192 rows of the file, in float64. `fast` starts
with unit encoder rows, and once more with rows of norm 0.577, as torch.nn.Linear has them: after few rows most of a difference is the start.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LR = 1e-3
BATCHES = 8  # different ones, then again
HELD_OUT = 8192
NEVER = 1 << 60
CASES = {
    "S": dict(arch="topk", d=512, m=8192, k=32, n=2048, file="acts_S_d512.npy"),
    "L": dict(arch="topk", d=768, m=24576, k=32, n=4096, file="acts_L_d768.npy"),
    "MP": dict(arch="mp", d=512, m=8192, k=32, n=1024, file="acts_S_d512.npy"),
    "T": dict(arch="topk", d=64, m=512, k=8, n=128, file=None),
    "TMP": dict(arch="mp", d=32, m=128, k=4, n=64, file=None),
}
ALPHA = 1 / 32  # of the auxiliary loss


# --- what runs in a child ---


class Peer:
    """A model with its optimiser. `dead` makes every fourth latent dead, or none."""

    stages = ("encode", "step", "auxk")

    def __init__(self, c, rows):
        raise NotImplementedError

    def step(self, x):
        raise NotImplementedError

    def encode(self, x):
        raise NotImplementedError

    def reconstruct(self, x):
        raise NotImplementedError

    def dead(self, on):
        raise NotImplementedError

    def parameters(self):
        raise NotImplementedError


def counters(since, on):
    """Sets counts of silence to 0, with `on` every fourth beyond any limit."""
    since.zero_()
    if on:
        since[::4] = 2 * NEVER


class Dense(Peer):
    """Eager PyTorch: every pre-activation, code and gradient is a dense matrix."""

    autocast = False

    def __init__(self, c, rows):
        import torch

        self.c, self.torch = c, torch
        atoms = torch.nn.functional.normalize(torch.randn(c["m"], c["d"]), dim=1)
        self.enc, self.dec = torch.nn.Parameter(atoms.clone()), torch.nn.Parameter(atoms)
        self.b_enc = torch.nn.Parameter(torch.zeros(c["m"]))
        self.b_dec = torch.nn.Parameter(rows[:20000].mean(0).clone())
        self.adam = torch.optim.Adam(self.parameters(), lr=LR)
        self.since, self.limit = torch.zeros(c["m"], dtype=torch.long), c["dead_after"]

    def parameters(self):
        return [self.enc, self.dec, self.b_enc, self.b_dec]

    def dead(self, on):
        counters(self.since, on)

    def cast(self):
        return self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.autocast)

    def pre(self, x):
        with self.cast():
            return self.torch.relu(self.torch.nn.functional.linear(x - self.b_dec, self.enc, self.b_enc))

    def decode(self, values, indices):
        codes = self.torch.zeros(len(values), self.c["m"], dtype=values.dtype).scatter(1, indices, values)
        with self.cast():
            return (codes @ self.dec).float()

    def encode(self, x):
        with self.torch.no_grad():
            return self.pre(x).topk(self.c["k"], dim=-1, sorted=False)

    def reconstruct(self, x):
        with self.torch.no_grad():
            return self.decode(*self.encode(x)) + self.b_dec

    def step(self, x):
        torch, half = self.torch, self.c["d"] // 2
        pre = self.pre(x)
        values, indices = pre.topk(self.c["k"], dim=-1, sorted=False)
        error = self.decode(values, indices) + self.b_dec - x
        spread = (x - x.mean(0)).square().sum()
        loss = error.square().sum() / spread
        dead = self.since > self.limit
        if n_dead := int(dead.sum()):
            v, i = torch.where(dead, pre, -1.0).topk(min(half, n_dead), dim=-1, sorted=False)
            rest = self.decode(v.relu(), i) + error.detach()
            loss = loss + ALPHA * min(n_dead / half, 1.0) * rest.square().sum() / spread
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            self.dec.div_(self.dec.norm(dim=1, keepdim=True))
            self.since += len(x)
            self.since[indices[values > 0]] = 0


class DenseBf16(Dense):
    autocast = True


class Fast(Dense):
    """The same mathematics, by hand: no dense codes, no autograd, gradients only where codes are."""

    CHUNK = 256  # rows whose gathered atoms fit in cache

    def __init__(self, c, rows):
        super().__init__(c, rows)
        self.adam = self.torch.optim.Adam(self.parameters(), lr=LR, fused=True)

    def select(self, x):
        xc = x - self.b_dec
        pre = self.torch.ops.mkldnn._linear_pointwise(xc, self.enc, self.b_enc, "none", [], "")
        values, indices = pre.topk(self.c["k"], dim=-1, sorted=False)
        return xc, pre, values.relu_(), indices

    def encode(self, x):
        with self.torch.no_grad():
            return self.select(x)[2:]

    def decode(self, values, indices):
        return self.torch.nn.functional.embedding_bag(indices, self.dec, per_sample_weights=values, mode="sum")

    def learn(self, xc, values, indices, grad):
        """Adds the gradients of codes whose reconstruction has gradient `grad` [n, d]."""
        torch, (n, k) = self.torch, indices.shape
        to_code = torch.empty_like(values)
        for at in range(0, n, self.CHUNK):
            part = slice(at, at + self.CHUNK)
            flat = indices[part].reshape(-1)
            atoms = self.dec[flat].view(-1, k, grad.shape[1])
            to_code[part] = torch.bmm(atoms, grad[part].unsqueeze(2)).squeeze(2) * (values[part] > 0)
            self.dec.grad.index_add_(0, flat, (values[part].unsqueeze(2) * grad[part].unsqueeze(1)).flatten(0, 1))
            self.enc.grad.index_add_(0, flat, (to_code[part].unsqueeze(2) * xc[part].unsqueeze(1)).flatten(0, 1))
        self.b_enc.grad.index_add_(0, indices.reshape(-1), to_code.reshape(-1))
        through = torch.nn.functional.embedding_bag(indices, self.enc, per_sample_weights=to_code, mode="sum")
        self.b_dec.grad += grad.sum(0) - through.sum(0)

    def revive(self, xc, pre, ids, error, spread):
        """The auxiliary loss: codes over the dead columns alone, dense there."""
        torch, half = self.torch, self.c["d"] // 2
        values, local = pre[:, ids].topk(min(half, len(ids)), dim=-1, sorted=False)
        codes = torch.zeros(len(pre), len(ids)).scatter_(1, local, values.relu_())
        atoms = self.dec[ids]
        grad = (codes @ atoms + error) * (2 * ALPHA * min(len(ids) / half, 1.0) / spread)
        to_code = (grad @ atoms.T) * (codes > 0)
        self.dec.grad.index_add_(0, ids, codes.T @ grad)
        self.enc.grad.index_add_(0, ids, to_code.T @ xc)
        self.b_enc.grad.index_add_(0, ids, to_code.sum(0))

    def step(self, x):
        torch = self.torch
        with torch.no_grad():
            xc, pre, values, indices = self.select(x)
            error = self.decode(values, indices) + self.b_dec - x
            spread = (x - x.mean(0)).square().sum()
            for p in self.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
            self.learn(xc, values, indices, error * (2 / spread))
            ids = (self.since > self.limit).nonzero()[:, 0]
            if len(ids):
                self.revive(xc, pre, ids, error, spread)
            self.adam.step()
            self.dec.div_(self.dec.norm(dim=1, keepdim=True))
            self.since += len(x)
            self.since[indices[values > 0]] = 0


class FastScaled(Fast):
    """With the encoder's rows as long as torch.nn.Linear makes them: of the same speed, so for --fvu-tokens alone."""

    stages = ()

    def __init__(self, c, rows):
        super().__init__(c, rows)
        self.enc.data *= 3**-0.5


class FastOurs(Fast):
    """From the dictionary that ours started from (--start): what is left of a difference is not the start's."""

    stages = ()

    def __init__(self, c, rows):
        from safetensors.torch import load_file

        super().__init__(c, rows)
        if c.get("start"):  # none for the small one that only loads what libraries load
            saved = load_file(f"{c['start']}/dictionary.safetensors")
            for to, name in [(self.enc, "w_enc"), (self.dec, "w_dec"), (self.b_enc, "b_enc"), (self.b_dec, "b_dec")]:
                to.data.copy_(saved[name].view_as(to))


class Sparsify(Peer):
    """EleutherAI's sparsify: what Trainer.fit does with a batch of one hook point, with Adam."""

    def __init__(self, c, rows):
        import torch
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder

        torch.set_float32_matmul_precision("high")  # as Trainer.fit
        self.c, self.torch = c, torch
        self.sae = SparseCoder(c["d"], SparseCoderConfig(num_latents=c["m"], k=c["k"]), "cpu", dtype=torch.float32)
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=LR)
        self.since, self.limit, self.first = torch.zeros(c["m"], dtype=torch.long), c["dead_after"], True

    def parameters(self):
        return list(self.sae.parameters())

    def dead(self, on):
        counters(self.since, on)

    def encode(self, x):
        with self.torch.no_grad():
            return self.sae.encode(x)

    def reconstruct(self, x):
        with self.torch.no_grad():
            values, indices, _ = self.sae.encode(x)
            return self.sae.decode(values, indices)

    def step(self, x):
        torch, sae = self.torch, self.sae
        if self.first:
            sae.b_dec.data, self.first = x.mean(0), False
        sae.set_decoder_norm_to_unit_norm()
        spread = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=self.since > self.limit, total_variance=spread)
        fired = torch.zeros(self.c["m"], dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach()), float(out.auxk_loss.detach())  # it logs both
        (out.fvu + ALPHA * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self.adam.step()
        self.adam.zero_grad()
        self.since += len(x)
        self.since[fired] = 0


class SaeLens(Peer):
    """SAELens: SAETrainer.step, which its fit calls for each batch."""

    def __init__(self, c, rows):
        import torch
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.c, self.torch = c, torch
        self.sae = self.model(c)
        config = SAETrainerConfig(
            total_training_samples=10**9, train_batch_size_samples=c["n"], lr=LR, lr_end=LR, device="cpu",
            dead_feature_window=c["dead_after"] // c["n"], logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(config, self.sae, data_provider=iter(()))

    def model(self, c):
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

        return TopKTrainingSAE(TopKTrainingSAEConfig(d_in=c["d"], d_sae=c["m"], k=c["k"], dtype="float32", device="cpu"))

    def parameters(self):
        return list(self.sae.parameters())

    def dead(self, on):
        counters(self.trainer.n_forward_passes_since_fired, on)

    def encode(self, x):
        with self.torch.no_grad():
            return self.sae.encode(x)

    def reconstruct(self, x):
        with self.torch.no_grad():
            return self.sae.decode(self.sae.encode(x))

    def step(self, x):
        self.trainer.step(x)
        self.trainer.n_training_steps += 1


class SaeLensMp(SaeLens):
    stages = ("encode", "step")

    def model(self, c):
        from sae_lens.saes import matching_pursuit_sae as mp

        return mp.MatchingPursuitTrainingSAE(
            mp.MatchingPursuitTrainingSAEConfig(
                d_in=c["d"], d_sae=c["m"], dtype="float32", device="cpu", max_iterations=c["k"], residual_threshold=0.0,
                decoder_init_norm=1.0, stop_on_duplicate_support=False,
            )
        )


class DictionaryLearning(Peer):
    """dictionary_learning: TopKTrainer.update, with the selection of training."""

    def __init__(self, c, rows):
        import torch
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.c, self.torch, self.at = c, torch, 0
        self.trainer = TopKTrainer(
            steps=10**6, activation_dim=c["d"], dict_size=c["m"], k=c["k"], layer=0, lm_name="none", lr=LR, warmup_steps=0, seed=0,
            device="cpu",
        )
        self.trainer.dead_feature_threshold = c["dead_after"]
        self.forced, loss = False, self.trainer.get_auxiliary_loss

        def auxiliary(*arguments):
            if self.forced:  # by now it has taken back those that fire in this very batch, early in training most of them
                counters(self.trainer.num_tokens_since_fired, True)
            return loss(*arguments)

        self.trainer.get_auxiliary_loss = auxiliary

    def parameters(self):
        return list(self.trainer.ae.parameters())

    def dead(self, on):
        self.forced = on
        counters(self.trainer.num_tokens_since_fired, on)

    def encode(self, x):
        with self.torch.no_grad():
            return self.trainer.ae.encode(x, use_threshold=False)

    def reconstruct(self, x):
        with self.torch.no_grad():
            return self.trainer.ae.decode(self.encode(x))

    def step(self, x):
        self.trainer.update(self.at, x)
        self.at += 1


class Overcomplete(Peer):
    """overcomplete: train_sae with its defaults, one batch at a time. With `dead`, its auxiliary loss instead of the squared error alone."""

    def __init__(self, c, rows):
        import torch
        from overcomplete.sae import train_sae
        from overcomplete.sae.losses import top_k_auxiliary_loss

        self.c, self.torch, self.train = c, torch, train_sae
        self.plain = lambda x, x_hat, pre, codes, atoms: (x - x_hat).square().mean()
        self.auxiliary, self.loss = top_k_auxiliary_loss, self.plain
        self.sae = self.model(c)
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=LR)

    def model(self, c):
        from overcomplete.sae import TopKSAE

        return TopKSAE(c["d"], nb_concepts=c["m"], top_k=c["k"], device="cpu")

    def parameters(self):
        return list(self.sae.parameters())

    def dead(self, on):
        self.loss = self.auxiliary if on else self.plain

    def encode(self, x):
        with self.torch.no_grad():
            return self.sae.encode(x)[1]

    def reconstruct(self, x):
        with self.torch.no_grad():
            return self.sae.decode(self.encode(x))

    def step(self, x):
        import contextlib

        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            self.train(self.sae, [x], self.loss, self.adam, nb_epochs=1, device="cpu")


class OvercompleteMp(Overcomplete):
    stages = ("encode", "step")

    def model(self, c):
        from overcomplete.sae import MpSAE

        return MpSAE(c["d"], nb_concepts=c["m"], k=c["k"], device="cpu")


PEERS = {
    "topk": {
        "torch f32": Dense,
        "torch bf16": DenseBf16,
        "fast": Fast,
        "fast, encoder rows of 0.577": FastScaled,
        "fast, our start": FastOurs,
        "sparsify": Sparsify,
        "SAELens": SaeLens,
        "dictionary_learning": DictionaryLearning,
        "overcomplete": Overcomplete,
    },
    "mp": {"overcomplete": OvercompleteMp, "SAELens": SaeLensMp},
}
# request -> name in the table; what is sent to `lapidary bench step --serve` for one sample
OURS = {
    "topk": {
        ("lapidary", "encode"): ["encode"],
        ("lapidary", "step"): ["step"],
        ("lapidary", "auxk"): ["auxk"],
        ("lapidary unscreened", "encode"): ["screen off", "encode", "screen auto"],
        ("gemm + quickselect", "encode"): ["dense"],
        ("candle arg_sort", "encode"): ["sorted"],
    },
    "mp": {("lapidary", "encode"): ["encode"], ("lapidary", "step"): ["step"]},
}


def status(key):
    try:
        for line in open("/proc/self/status"):
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_of(work):
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free since the work before is no memory of this
    except (OSError, AttributeError):
        pass
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        work()
        return None
    work()
    return status("VmHWM:")


def child(name, case, path, threads, dead_after, start):
    """Answers each line of stdin with one line: `encode`, `step`, `auxk`, `memory`, `fvu N`."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its CUDA decoder is chosen at import, wherever triton is installed
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def say(**answer):
        print(json.dumps(answer), file=out, flush=True)

    import warnings

    warnings.filterwarnings("ignore")
    c = CASES[case] | {"dead_after": dead_after, "start": start}
    try:
        import numpy as np
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        all_rows = np.load(path, mmap_mode="r")
        rows = torch.from_numpy(np.array(all_rows[: BATCHES * c["n"]]))
        # Libraries load what they load at first use: that is no memory of a step.
        small = c | dict(m=16 * c["k"], start=None)
        PEERS[c["arch"]][name](small, rows).step(rows[:64])
        gc.collect()
        base = status("VmRSS:")
        torch.manual_seed(0)
        peer = PEERS[c["arch"]][name](c, rows)
    except ImportError as e:
        return say(skipped=f"{type(e).__name__}: {e}")
    at = 0

    def batch():
        nonlocal at
        n, at = c["n"], at + 1
        return rows[(at - 1) % BATCHES * n :][:n]

    def timed(stage):
        x = batch()
        work = peer.encode if stage == "encode" else peer.step
        if stage != "encode":
            peer.dead(stage == "auxk")
        wall, cpu = time.perf_counter(), time.process_time()
        work(x)
        return dict(wall_ms=1e3 * (time.perf_counter() - wall), cpu_ms=1e3 * (time.process_time() - cpu))

    def memory():
        peer.dead(False)
        x = batch()
        state = 3 * 4 * sum(p.numel() for p in peer.parameters())
        peak = peak_of(lambda: peer.step(x))
        return dict(state_bytes=state, peak_above_state_bytes=None if None in (peak, base) else peak - base - state)

    def fvu(tokens):
        """Trains on rows in file order, from wherever the model is; the last rows of the file are scored."""
        n, train, held = c["n"], all_rows[:-HELD_OUT], torch.from_numpy(np.array(all_rows[-HELD_OUT:]))
        started, fits = time.perf_counter(), len(train) // n
        for step in range(tokens // n):
            first = step % fits * n
            peer.step(torch.from_numpy(np.array(train[first : first + n])))
        seconds, mean, error = time.perf_counter() - started, held.double().mean(0), 0.0
        for part in held.split(2048):
            error += (part.double() - peer.reconstruct(part).double()).square().sum().item()
        return dict(fvu=error / (held.double() - mean).square().sum().item(), tokens=tokens // n * n, seconds=seconds)

    say(ready=dict(torch=torch.__version__, threads=torch.get_num_threads()))
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "quit":
            break
        answer = memory() if word == "memory" else fvu(int(rest[0])) if word == "fvu" else timed(word)
        say(**answer)


# --- what drives them ---


class Program:
    """A child that answers lines with lines."""

    def __init__(self, command, threads):
        limit = {v: str(threads) for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=os.environ | limit
        )
        self.hello = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError("it ended: " + " | ".join(self.errors.read().strip().splitlines()[-3:]))
        return json.loads(line)

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self):
        try:
            self.process.stdin.write("quit\n")
            self.process.stdin.close()
            self.process.wait(timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def busy():
    """CPU seconds that the machine has worked so far."""
    try:
        fields = [int(v) for v in open("/proc/stat").readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def seeded(case, rows, path):
    """Sparse sums of unit directions with falling frequencies, and noise; mean squared norm about d."""
    import numpy as np

    rng, d, active = np.random.default_rng(7), case["d"], 24
    directions = rng.standard_normal((4 * d, d), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weight = np.cumsum(1 / np.sqrt(np.arange(4 * d) + 10.0))
    x = np.lib.format.open_memmap(path, "w+", np.float32, (rows, d))
    for at in range(0, rows, 4096):
        n = min(4096, rows - at)
        which = np.searchsorted(weight / weight[-1], rng.random((n, active)))
        size = (0.5 + rng.exponential(size=(n, active))).astype(np.float32)
        part = 0.3 * rng.standard_normal((n, d), dtype=np.float32) * np.sqrt(active / d)
        for j in range(active):
            part += size[:, j : j + 1] * directions[which[:, j]]
        x[at : at + n] = part * np.sqrt(d / (2.6 * active))
    x.flush()


def measured(program, requests, threads):
    """One sample: the last answer with a time in it, and what others did to the machine meanwhile."""
    sample = None
    for request in requests:
        before, wall = busy(), time.perf_counter()
        answer = program.ask(request)
        if "wall_ms" in answer:
            wall, after = time.perf_counter() - wall, busy()
            foreign = None if None in (before, after) else max(0.0, (after - before) - 1e-3 * (answer["cpu_ms"] or 0)) / wall / os.cpu_count()
            sample = answer | {"foreign": foreign}
    return sample


def start(a, name, case, data, skipped):
    c = CASES[case]
    if name == "lapidary":
        command = [a.lapidary, "bench", "step", "--serve", "--from", data, "--arch", c["arch"], "--d-sae", c["m"], "--k", c["k"]]
        command += ["--batch", c["n"], "--lr", LR, "--steps", BATCHES - 2, "--threads", a.threads]
    else:
        dead_after = NEVER if a.fvu_tokens is None else a.dead_after
        command = [sys.executable, __file__, "--child", name, "--cases", case, "--from", data, "--threads", a.threads, "--dead-after", dead_after]
        command += ["--start", a.start] if a.start else []
    try:
        program = Program([str(part) for part in command], a.threads)
    except (OSError, RuntimeError) as e:
        skipped[name] = str(e)
        return None
    if "skipped" in program.hello:
        skipped[name] = program.hello["skipped"]
        program.close()
        return None
    print(f"{case}: {name} is ready", file=sys.stderr)
    return program


def timings(a, case, data, log):
    """Rounds over all programs and stages of a case. Returns its section of the report."""
    c, skipped, programs, work = CASES[case], {}, {}, {}
    wanted = lambda name, stage: re.search(a.only, f"{case}/{name}/{stage}")
    for (name, stage), requests in OURS[c["arch"]].items():
        if wanted(name, stage):
            work[name, stage] = ("lapidary", requests)
    for name, peer in PEERS[c["arch"]].items():
        work |= {(name, stage): (name, [stage]) for stage in peer.stages if wanted(name, stage)}
    for name in dict.fromkeys(program for program, _ in work.values()):
        if program := start(a, name, case, data, skipped):
            programs[name] = program
    samples = {key: [] for key, (name, _) in work.items() if name in programs}
    # Stage by stage, so that what is compared lies close together; another program begins each round.
    for turn in range(-a.warmup, a.rounds):
        for stage in ("encode", "step", "auxk"):
            keys = [key for key in samples if key[1] == stage]
            shift = turn % len(keys) if keys else 0
            for key in keys[shift:] + keys[:shift]:
                name, requests = work[key]
                if name not in programs:
                    continue
                time.sleep(a.settle)  # threads of the one before go to sleep
                try:
                    sample = measured(programs[name], requests, a.threads)
                except RuntimeError as e:
                    skipped[name] = f"{stage}: {e}"
                    programs.pop(name).close()
                    continue
                if turn >= 0:
                    samples[key].append(sample)
                    log.write(json.dumps({"case": case, "program": key[0], "stage": stage, "round": turn, "threads": a.threads} | sample) + "\n")
                    log.flush()
        print(f"{case}: round {turn + 1} of {a.rounds}" if turn >= 0 else f"{case}: warm-up", file=sys.stderr)
    memory = {}
    for name, program in programs.items():
        try:
            memory[name] = program.ask("memory")
            log.write(json.dumps({"case": case, "program": name, "stage": "memory"} | memory[name]) + "\n")
        except RuntimeError as e:
            skipped[name] = f"memory: {e}"
        program.close()
    return section(a, case, samples, memory, skipped)


def section(a, case, samples, memory, skipped):
    c = CASES[case]
    median = {key: {of: statistics.median(s[of] for s in list_) for of in ("wall_ms", "cpu_ms")} for key, list_ in samples.items() if list_}
    stages = [s for s in ("encode", "step", "auxk") if any(key[1] == s for key in median)]
    text = f"### {case}: d {c['d']}, {c['m']} latents, k {c['k']}, batch {c['n']}, {a.threads} thread{'s' * (a.threads > 1)}, {a.rounds} rounds\n\n"
    text += "Median ms of wall / CPU time; in brackets the ratios of both to ours.\n\n"
    text += "| | " + " | ".join(stages) + " | peak above state, MiB |\n|" + "---|" * (len(stages) + 2) + "\n"
    for name in dict.fromkeys(key[0] for key in median):
        cells = []
        for stage in stages:
            m, ours = median.get((name, stage)), median.get(("lapidary", stage))
            ratio = ""
            if m and ours and name != "lapidary":
                ratio = f" ({m['wall_ms'] / ours['wall_ms']:.2f}x / {m['cpu_ms'] / ours['cpu_ms']:.2f}x)"
            cells.append(f"{m['wall_ms']:.1f} / {m['cpu_ms']:.1f}{ratio}" if m else "")
        above = (memory.get(name) or {}).get("peak_above_state_bytes")
        text += f"| {name} | " + " | ".join(cells) + f" | {'' if above is None else round(above / 2**20)} |\n"
    seen = [s for list_ in samples.values() for s in list_ if s["foreign"] is not None]
    if seen:
        share = sum(s["foreign"] * s["wall_ms"] for s in seen) / sum(s["wall_ms"] for s in seen)
        text += f"\nOthers used {100 * share:.0f} % of the machine while samples were taken.\n"
    if c["arch"] == "topk" and {("lapidary", "step"), ("lapidary", "auxk")} <= median.keys():
        active, cpu = (median["lapidary", "auxk"][of] / median["lapidary", "step"][of] for of in ("wall_ms", "cpu_ms"))
        text += f"\nAuxK active against idle: {active:.2f}x of wall, {cpu:.2f}x of CPU time.\n"
    for name, why in skipped.items():
        text += f"\nSkipped: {name} ({why})\n"
    return text


def quality(a, case, data, log):
    """Held-out FVU after the same rows, one program after the other."""
    c, skipped, results = CASES[case], {}, {}
    tokens = a.fvu_tokens
    if re.search(a.only, f"{case}/lapidary/fvu"):
        command = [a.lapidary, "bench", "step", "--from", data, "--arch", c["arch"], "--d-sae", c["m"], "--k", c["k"], "--batch", c["n"]]
        command += ["--lr", LR, "--fvu-tokens", tokens, "--threads", a.threads, "--json", "--set", f"sae.aux_k.dead_after_tokens={a.dead_after}"]
        a.start = str(Path(a.out) / f"start-{case}")
        command += ["--start-out", a.start]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        results["lapidary"] = json.loads(done.stdout)["quality"]
    for name in PEERS[c["arch"]]:
        if re.search(a.only, f"{case}/{name}/fvu") and (program := start(a, name, case, data, skipped)):
            try:
                results[name] = program.ask(f"fvu {tokens}")
            except RuntimeError as e:
                skipped[name] = str(e)
            program.close()
    text = f"### {case}: held-out FVU after {tokens} rows in file order, lr {LR}, batch {c['n']}\n\n| | FVU | against ours |\n|---|---|---|\n"
    for name, r in results.items():
        log.write(json.dumps({"case": case, "program": name, "stage": "fvu"} | r) + "\n")
        against = f"{r['fvu'] / results['lapidary']['fvu']:.4f}" if "lapidary" in results else ""
        text += f"| {name} | {r['fvu']:.4f} | {against} |\n"
    return text + "".join(f"\nSkipped: {name} ({why})\n" for name, why in skipped.items())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lapidary", default="target/release/lapidary", help="the binary")
    p.add_argument("--cases", default="S,L,MP", help="comma list of " + ", ".join(CASES))
    p.add_argument("--from", dest="data", metavar="DIR", help="folder with the .npy files of the cases")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    p.add_argument("--settle", type=float, default=0.2, help="seconds between samples")
    p.add_argument("--only", default=".", metavar="REGEX", help="of case/program/stage")
    p.add_argument("--fvu-tokens", type=int, metavar="N", help="measure quality instead of time")
    p.add_argument("--dead-after", type=int, default=40960, help="--fvu-tokens: rows of silence after which a latent is dead")
    p.add_argument("--out", default="steps", help="folder for steps.jsonl and steps.md")
    p.add_argument("--start", help=argparse.SUPPRESS)
    p.add_argument("--child", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child, a.cases, a.data, a.threads, a.dead_after, a.start)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    text = ""
    with open(out / "steps.jsonl", "w") as log, tempfile.TemporaryDirectory() as made:
        for case in a.cases.split(","):
            c = CASES[case]
            data = a.data and c["file"] and Path(a.data) / c["file"]
            if not data:
                data = Path(made) / f"{case}.npy"
                rows = BATCHES * c["n"] if a.fvu_tokens is None else HELD_OUT + min(a.fvu_tokens, 200_000)
                seeded(c, rows, data)
            text += (timings if a.fvu_tokens is None else quality)(a, case, str(data), log) + "\n"
            (out / "steps.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
