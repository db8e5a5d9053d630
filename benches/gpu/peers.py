"""What ours is timed against: PyTorch's dense way, sparsify's kernels, OpenAI's kernels; each with fused Adam, a decoder projected and
renormalised, no clipping and no AuxK. The kernels are files that `carry.sh` found; they are read from there, not kept here.

Generous where there is a choice: bias inside the product, unsorted top-k, no pass that takes a loss scale out, no statistics of dead latents.
"""

import hashlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F


def load(path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(f"peer_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def identity(path):
    return f"{Path(path).name} {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"


def encode(x, w, b, k):
    """bf16 or f32 operands; torch's own way."""
    return torch.topk(F.relu(F.linear(x, w, b)), k, dim=-1, sorted=False)


def encode_batch(x, w, b, total):
    return torch.topk(F.relu(F.linear(x, w, b)).flatten(), total, sorted=False)


class Trainer:
    """f32 parameters, 16-bit products under autocast."""

    autocast = torch.bfloat16

    def __init__(self, w_enc, b_enc, w_dec, b_dec, k, lr=1e-3):
        self.k = k
        self.parameters = [torch.nn.Parameter(t) for t in (w_enc, b_enc, w_dec, b_dec)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=True)

    def reconstruct(self, x):
        raise NotImplementedError

    def forward(self, x):
        with torch.autocast("cuda", dtype=self.autocast):
            return (self.reconstruct(x).float() - x).square().mean()

    def backward(self, loss):
        loss.backward()
        self.project()
        self.optimizer.step()
        self.normalise()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def project(self):
        w = self.parameters[2]
        w.grad -= (w.grad * w).sum(1, keepdim=True) * w

    @torch.no_grad()
    def normalise(self):
        w = self.parameters[2]
        w /= w.norm(dim=1, keepdim=True) + 1e-8

    def step(self, x):
        self.backward(self.forward(x))


class Dense(Trainer):
    """Dense products everywhere."""

    def reconstruct(self, x):
        w_enc, b_enc, w_dec, b_dec = self.parameters
        pre = F.relu(F.linear(x - b_dec, w_enc, b_enc))
        values, indices = torch.topk(pre, self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, values) @ w_dec + b_dec


class Sparsify(Trainer):
    """fused_encoder.py and xformers.py of eai-sparsify, called as its SparseCoder calls them."""

    def __init__(self, folder, *args, **more):
        super().__init__(*args, **more)
        self.encoder, self.decoder = load(Path(folder) / "fused_encoder.py"), load(Path(folder) / "xformers.py")

    def reconstruct(self, x):
        w_enc, b_enc, w_dec, b_dec = self.parameters
        values, indices, _ = self.encoder.fused_encoder(x - b_dec, w_enc, b_enc, self.k, "topk")
        return self.decoder.xformers_embedding_bag(indices, w_dec, values.float()) + b_dec


class OpenAI(Trainer):
    """kernels.py of openai/sparse_autoencoder: its sparse products in the decoder, and in the encoder's gradient as its train.py does it.
    fp16 under autocast with a loss scale, as there: without it gradients would vanish, and its kernels skip zeroes. The scale is taken out by
    Adam, not by a pass of its own."""

    autocast = torch.float16

    def __init__(self, path, *args, **more):
        super().__init__(*args, **more)
        kernels = self.kernels = load(path)
        self.scaler = torch.amp.GradScaler("cuda", enabled=torch.cuda.is_available())
        outer = self

        class Encode(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, b_dec, w, b):
                x = x - b_dec
                values, indices = torch.topk(F.linear(x, w, b), outer.k, dim=-1)
                ctx.save_for_backward(x, w, indices)
                return indices, values

            @staticmethod
            def backward(ctx, _, grad):
                x, w, indices = ctx.saved_tensors
                total = torch.zeros(len(w), dtype=torch.float32, device=x.device)
                total.scatter_add_(0, indices.flatten(), grad.flatten().float())
                grad_w = kernels.triton_sparse_transpose_dense_matmul(indices, grad.contiguous(), x, N=len(w))
                return None, -(total @ w), grad_w, total

        self.encode = Encode.apply

    def reconstruct(self, x):
        w_enc, b_enc, w_dec, b_dec = self.parameters
        indices, values = self.encode(x, b_dec, w_enc, b_enc)
        return self.kernels.TritonDecoderAutograd.apply(indices, F.relu(values), w_dec.T) + b_dec

    def backward(self, loss):
        self.scaler.scale(loss).backward()
        self.project()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.normalise()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def project(self):
        w = self.parameters[2]
        along = torch.einsum("nb,nb->n", w, w.grad)
        self.kernels.triton_add_mul_(w.grad.T, along, w.T, c=-1)


def trainers(folder):
    """{name: (class, leading arguments)} of what can be loaded; and what cannot, as sentences."""
    folder, found, absent = Path(folder), {"dense": (Dense, ())}, []
    if all((folder / name).is_file() for name in ("fused_encoder.py", "xformers.py")):
        found["sparsify"] = (Sparsify, (folder,))
    else:
        absent.append("sparsify's kernels were not carried")
    if (folder / "openai_kernels.py").is_file():
        found["openai"] = (OpenAI, (folder / "openai_kernels.py",))
    else:
        absent.append("OpenAI's kernels were not carried")
    return found, absent
