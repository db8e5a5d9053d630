"""Whole training steps: dense, sparsify, OpenAI, ours. Milliseconds under step.N.K.D.M.WHO, peaks of memory, and tokens per second behind a
host model."""

from pathlib import Path

import torch

import peers
import reference as ref
import timing
from training import Step

# (n, k, d, m)
SHAPES = [(8192, 64, 2304, 65536), (8192, 64, 768, 65536), (8192, 64, 4096, 65536), (8192, 64, 768, 24576), (4096, 32, 768, 65536)]
SETS = 3


def coder(e, d, m):
    w_dec = torch.randn(m, d, device=e.device)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    return [w_dec.clone(), torch.zeros(m, device=e.device), w_dec, torch.zeros(d, device=e.device)]


def bytes_of_state(d, m, element):
    return 2 * d * m * element


def lost(error):
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else repr(error)


def peer(e, report, key, who, kind, first, n, k, d, m):
    xs = [torch.randn(n, d, device=e.device) for _ in range(SETS)]
    try:
        def go():
            trainer = kind(*first, *coder(e, d, m), k)
            trainer.step(xs[0])
            trainer.step(xs[1])
            return trainer

        bytes_, trainer = timing.peak(go)
        report.number(f"{key}.{who}_peak", bytes_)
        # Without parameters, their gradients and moments.
        report.number(f"{key}.{who}_activations", bytes_ - bytes_of_state(d, m, 16))
        ms = timing.median([lambda x=x: trainer.step(x) for x in xs], 0.6, 5)[0]
        report.number(f"{key}.{who}", ms)
        report.number(f"{key}.{who}_backward", ms - timing.median([lambda x=x: trainer.forward(x) for x in xs], 0.3, 5)[0])
    except Exception as error:
        report.note(f"{key}.{who}: {lost(error)}")
    timing.settle()


def ours(e, report, key, who, n, k, d, m, **settings):
    xs = [torch.randn(n, d, device=e.device) for _ in range(SETS)]
    try:
        def go():
            step = Step(e, n, k, *coder(e, d, m), own=True, **settings)
            for x in xs[:2]:
                step.x.copy_(x)
                step.run()
            return step

        bytes_, step = timing.peak(go)
        report.number(f"{key}.{who}_peak", bytes_)
        report.number(f"{key}.{who}_activations", bytes_ - bytes_of_state(d, m, 14))
        whole, back = [], []
        for x in xs:
            with e.record() as program:
                e.do(lambda x=x: step.x.copy_(x))
                step.run()
            whole.append(program)
        report.number(f"{key}.{who}", timing.median(whole, 0.6, 5)[0])
        if who == "merge":
            codes = step.encode()
            step.decode(codes)
            with e.record() as program:
                step.columns.build(codes)
                step.measure()
                step.apply()
            back.append(program)
            report.number(f"{key}.{who}_backward", timing.median(back, 0.4, 5)[0])
            report.number(f"{key}.floor_ms", 1e3 * ref.update_seconds(n, k, d, m, 4.3e12, 5.5e12))
            report.write(note=f"{key}: finite norm {e.read(step.norm).item():.3g}, bad steps {e.read(step.bad).item()}")
    except Exception as error:
        report.note(f"{key}.{who}: {lost(error)}")
    timing.settle()


def host_and_coder(e, report, encoder, m=65536, rows=32, context=256, layers=6):
    """Tokens per second of a random GPT-NeoX of Pythia-160M's shape up to its 6th layer in bf16, of a training step, and of both."""
    try:
        from transformers import GPTNeoXConfig, GPTNeoXModel
    except ImportError as error:
        report.note(f"host: {error}")
        return
    d, k = 768, 64
    config = GPTNeoXConfig(hidden_size=d, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=3072, vocab_size=50304)
    host = GPTNeoXModel(config).to(e.device, torch.bfloat16).eval()
    tokens = [torch.randint(0, 50304, (rows, context), device=e.device) for _ in range(SETS)]
    n = rows * context
    step = Step(e, n, k, *coder(e, d, m), own=True, encoder=encoder)
    step.x.copy_(torch.randn(n, d, device=e.device))
    step.run()
    with e.record() as program:
        step.run()

    @torch.no_grad()
    def activations(t):
        return host(t).last_hidden_state.reshape(n, d)

    def both(t):
        step.x.copy_(activations(t))
        program()

    alone, behind = [lambda t=t: activations(t) for t in tokens], [lambda t=t: both(t) for t in tokens]
    for who, runs in (("host", alone), ("coder", [program]), ("both", behind)):
        report.number(f"flow.{who}", n / timing.median(runs, 0.3)[0] * 1e3)


def run(e, report, hopper, carried, left, shapes=SHAPES, **host):
    found, absent = peers.trainers(carried)
    report.write(key="peers", value=[peers.identity(p) for p in sorted(Path(carried).glob("*.py"))])
    for sentence in absent:
        report.note(sentence)
    for i, (n, k, d, m) in enumerate(shapes):
        key = f"step.{n}.{k}.{d}.{m}"
        if left() < 20:
            report.note(f"step: no time left for {shapes[i:]}")
            break
        ours(e, report, key, "merge", n, k, d, m)
        if hopper:
            ours(e, report, key, "hopper", n, k, d, m, encoder="encode_hopper")
        for who, (kind, first) in found.items():
            peer(e, report, key, who, kind, first, n, k, d, m)
        if i == 0:
            ours(e, report, key, "certified", n, k, d, m, precision="certified")
            ours(e, report, key, "batch", n, k, d, m, choice="batch")
    try:
        host_and_coder(e, report, "encode_hopper" if hopper else "merge", **host)
    except Exception as error:
        report.note(f"host: {lost(error)}")
